"""All that knows a workdir: from a config to test.json."""
