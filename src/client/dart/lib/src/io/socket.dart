import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:math';
import 'dart:typed_data';

import '../core/handshake.dart';
import '../core/wire.dart';
import '../environment.dart';
import 'sha1.dart';

/// A WebSocket of `dart:io`. The handshake is written here, because
/// [WebSocket.connect] keeps the relay's reason for a refusal to itself.
final class IoSocket implements RelaySocket {
  /// A socket that opens at once, with [_client] for this handshake alone.
  IoSocket(this._client, Uri url, String token, this._events) {
    _open(url, token);
  }

  /// How long a goodbye may take.
  static const Duration goodbye = Duration(seconds: 1);

  final HttpClient _client;
  final SocketEvents _events;
  final Completer<void> _gone = Completer();
  StreamController<Object>? _out;
  WebSocket? _webSocket;
  Socket? _socket;
  bool _ended = false;

  Future<void> _open(Uri url, String token) async {
    try {
      final key = _newKey();
      final scheme = url.scheme == 'wss' ? 'https' : 'http';
      final request = await _client.getUrl(url.replace(scheme: scheme));
      request.followRedirects = false;
      request.headers
        ..set(HttpHeaders.connectionHeader, 'Upgrade')
        ..set(HttpHeaders.upgradeHeader, 'websocket')
        ..set('Sec-WebSocket-Key', key)
        ..set('Sec-WebSocket-Version', '13')
        ..set('Sec-WebSocket-Protocol', protocol)
        ..set(HttpHeaders.authorizationHeader, 'Bearer $token');
      final response = await request.close();
      if (_ended) return;
      if (!_isUpgraded(response, key)) {
        final failure = await readFailure(response);
        if (!_ended) _events.onFailed(failure);
        return;
      }
      final chosen = response.headers.value('Sec-WebSocket-Protocol');
      _start(await response.detachSocket(), chosen);
    } on Object catch (error) {
      if (_ended) return;
      _events.onFailed(HandshakeFailure.network('$error'));
    } finally {
      _client.close(force: true);
      if (_webSocket == null) _finish();
    }
  }

  static String _newKey() {
    final random = Random.secure();
    return base64.encode(List.generate(16, (_) => random.nextInt(256)));
  }

  /// RFC 6455 section 4.1.
  static bool _isUpgraded(HttpClientResponse response, String key) {
    if (response.statusCode != HttpStatus.switchingProtocols) return false;
    const guid = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
    final accept = base64.encode(sha1(ascii.encode('$key$guid')));
    return response.headers.value('Sec-WebSocket-Accept') == accept;
  }

  void _start(Socket socket, String? chosen) {
    if (_ended) {
      socket.destroy();
      return;
    }
    _socket = socket;
    _keepKernelQueueShort(socket);
    final webSocket = _webSocket = WebSocket.fromUpgradedSocket(
      socket,
      protocol: chosen,
      serverSide: false,
      compression: CompressionOptions.compressionOff,
    );
    final out = _out = StreamController<Object>(
      sync: true,
      onPause: () => _onWritable(false),
      onResume: () => _onWritable(true),
    );
    // A stream, unlike `add`, says when the socket takes no more.
    webSocket.addStream(out.stream).then(
      (_) => webSocket.close(WebSocketStatus.normalClosure),
      onError: (Object _) {},
    );
    webSocket.listen(
      (Object? message) {
        if (_ended) return;
        if (message is String) _events.onText(message);
        if (message is Uint8List) {
          _events.onBinary(message);
        } else if (message is List<int>) {
          _events.onBinary(Uint8List.fromList(message));
        }
      },
      onError: (Object _) {},
      onDone: _onDone,
    );
    _events.onOpened(chosen);
  }

  /// What waits in the kernel grows old there, where no newer frame replaces
  /// it. A system that does not know an option goes on without it.
  static void _keepKernelQueueShort(Socket socket) {
    try {
      socket.setOption(SocketOption.tcpNoDelay, true);
      const tcp = 6;
      final notSentLowWater =
          Platform.isIOS || Platform.isMacOS ? 0x201 : 25;
      if (Platform.isWindows) return;
      socket.setRawOption(RawSocketOption.fromInt(tcp, notSentLowWater, 1024));
    } on Object {
      return;
    }
  }

  void _onWritable(bool now) {
    if (!_ended) _events.onWritable(now);
  }

  void _onDone() {
    final webSocket = _webSocket!;
    _finish();
    if (_ended) return;
    _ended = true;
    _out?.close();
    final code = webSocket.closeCode ?? WebSocketStatus.abnormalClosure;
    _events.onClosed(code, webSocket.closeReason ?? '');
  }

  @override
  void write(Object message) {
    if (!_ended) _out?.add(message);
  }

  @override
  Future<void> end() {
    if (_ended) return _gone.future;
    _ended = true;
    _out?.close(); // the close frame follows what is still on its way
    // Over a dead network there is no answer, and nobody waits for it.
    final limit = Timer(goodbye, _finish);
    if (_webSocket == null) _client.close(force: true);
    return _gone.future.whenComplete(limit.cancel);
  }

  void _finish() {
    _socket?.destroy();
    if (!_gone.isCompleted) _gone.complete();
  }
}

/// The relay's problem document (RFC 9457) in [response], as far as there is
/// one.
Future<HandshakeFailure> readFailure(HttpClientResponse response) async {
  const mostBytes = 16 * 1024;
  final body = BytesBuilder(copy: false);
  await for (final chunk in response) {
    body.add(chunk);
    if (body.length > mostBytes) break;
  }
  Map<String, Object?> problem = const {};
  try {
    problem = parse(utf8.decode(body.takeBytes())) ?? const {};
  } on FormatException {
    // A page of something on the way.
  }
  return HandshakeFailure(
    status: response.statusCode,
    code: field<String>(problem, 'code') ?? '',
    detail: field<String>(problem, 'detail') ?? '',
    attempt: integer(problem, 'attempt'),
    retryAfterMs: parseRetryAfter(
      response.headers.value(HttpHeaders.retryAfterHeader),
      DateTime.now(),
    ),
  );
}

/// `Retry-After` in milliseconds: seconds or a date (RFC 9110 section
/// 10.2.3). Null where it is absent or neither.
double? parseRetryAfter(String? value, DateTime now) {
  final text = value?.trim() ?? '';
  if (RegExp(r'^\d{1,9}$').hasMatch(text)) return int.parse(text) * 1000;
  try {
    final ms = HttpDate.parse(text).difference(now).inMilliseconds;
    return ms < 0 ? 0 : ms.toDouble();
  } on HttpException {
    return null;
  } on FormatException {
    return null;
  }
}
