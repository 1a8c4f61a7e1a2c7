import 'dart:typed_data';

/// SHA-1 (RFC 3174): the opening handshake of a WebSocket needs it (RFC 6455
/// section 4.1), and `dart:io` keeps its own to itself.
Uint8List sha1(List<int> message) {
  final bits = message.length * 8;
  final blocks = (message.length + 8) ~/ 64 + 1;
  final padded = ByteData(blocks * 64);
  for (var i = 0; i < message.length; i += 1) {
    padded.setUint8(i, message[i]);
  }
  padded.setUint8(message.length, 0x80);
  padded.setUint32(blocks * 64 - 4, bits);

  final h = Uint32List.fromList(
    [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0],
  );
  final w = Uint32List(80);
  for (var block = 0; block < blocks; block += 1) {
    for (var t = 0; t < 16; t += 1) {
      w[t] = padded.getUint32(block * 64 + t * 4);
    }
    for (var t = 16; t < 80; t += 1) {
      w[t] = _rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    }
    var [a, b, c, d, e] = h;
    for (var t = 0; t < 80; t += 1) {
      final (f, k) = switch (t) {
        < 20 => ((b & c) | (~b & d), 0x5a827999),
        < 40 => (b ^ c ^ d, 0x6ed9eba1),
        < 60 => ((b & c) | (b & d) | (c & d), 0x8f1bbcdc),
        _ => (b ^ c ^ d, 0xca62c1d6),
      };
      final next = (_rotate(a, 5) + f + e + k + w[t]) & 0xffffffff;
      (a, b, c, d, e) = (next, a, _rotate(b, 30), c, d);
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
  }
  final digest = ByteData(20);
  for (var i = 0; i < 5; i += 1) {
    digest.setUint32(i * 4, h[i]);
  }
  return digest.buffer.asUint8List();
}

int _rotate(int word, int by) =>
    ((word << by) | (word >> (32 - by))) & 0xffffffff;
