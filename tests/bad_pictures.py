"""Files called .png or .jpg that no reader of pictures may take."""

import struct
import zlib

# Pillow would start Ghostscript on it.
POSTSCRIPT = (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 84\n'
              b'%%EndComments\n%%EOF\n')


def _chunk(kind, content):
  return (struct.pack('>I', len(content)) + kind + content
          + struct.pack('>I', zlib.crc32(kind + content)))


# A PNG of a few bytes that asks for 20,000 x 20,000 pixels.
BOMB = (b'\x89PNG\r\n\x1a\n'
        + _chunk(b'IHDR', struct.pack('>IIBBBBB', 20000, 20000, 8, 0, 0, 0, 0))
        + _chunk(b'IDAT', zlib.compress(b'0' * 99)) + _chunk(b'IEND', b''))
