"""Files called .png or .jpg that no reader of pictures may take."""

import struct
import zlib

# Pillow would start Ghostscript on it.
POSTSCRIPT = (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 84\n'
              b'%%EndComments\n%%EOF\n')


def _chunk(kind, content):
  return (struct.pack('>I', len(content)) + kind + content
          + struct.pack('>I', zlib.crc32(kind + content)))


def bomb(side):
  """Returns a PNG of a few bytes that asks for side x side pixels."""
  head = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', head)
          + _chunk(b'IDAT', zlib.compress(b'0' * 99)) + _chunk(b'IEND', b''))


BOMB = bomb(20000)
