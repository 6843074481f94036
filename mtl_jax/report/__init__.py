"""Tables and pages made of finished runs."""
