import 'dart:convert';

/// The user that a token is about, read without checking the token: `UID`, or
/// `TENANT/UID`. Null where the text is no JSON Web Token.
String? userOf(String token) {
  final parts = token.split('.');
  if (parts.length != 3) return null;
  try {
    final text = utf8.decode(base64Url.decode(base64Url.normalize(parts[1])));
    final claims = jsonDecode(text);
    if (claims is! Map) return null;
    final sub = claims['sub'];
    if (sub is! String || sub.isEmpty) return null;
    final firebase = claims['firebase'];
    final tenant = firebase is Map ? firebase['tenant'] : null;
    return tenant is String && tenant.isNotEmpty ? '$tenant/$sub' : sub;
  } on FormatException {
    return null;
  }
}

/// Eight hexadecimal digits that bring a user's two devices to one relay and
/// say nothing about the user: FNV-1a, 32 bits, of the UTF-8 text.
String affinityOf(String user) {
  var hash = 0x811c9dc5;
  for (final byte in utf8.encode(user)) {
    hash = ((hash ^ byte) * 0x01000193) & 0xffffffff;
  }
  return hash.toRadixString(16).padLeft(8, '0');
}
