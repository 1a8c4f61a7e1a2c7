/// What the tests of real relays start and end: relays, Redis, a proxy that
/// plays a bad network.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:math';

import 'runner.dart';

/// A program with its output. It ends with the test.
final class Program {
  Program._(this._process, this.name) {
    for (final stream in [_process.stdout, _process.stderr]) {
      stream.transform(const Utf8Decoder(allowMalformed: true)).listen(_log.write);
    }
    unawaited(_process.exitCode.then((code) => exitCode = code));
    afterwards(stop);
  }

  static Future<Program> start(
    String command,
    List<String> arguments, {
    Map<String, String> environment = const {},
  }) async {
    final process = await Process.start(
      command,
      arguments,
      environment: {'PATH': Platform.environment['PATH'] ?? '', ...environment},
      includeParentEnvironment: false,
    );
    return Program._(process, command);
  }

  final Process _process;
  final String name;
  final StringBuffer _log = StringBuffer();
  int? exitCode;

  String get log => '$_log';
  Future<int> get ended => _process.exitCode;

  void signal(ProcessSignal signal) => _process.kill(signal);

  Future<void> stop() async {
    _process.kill(ProcessSignal.sigkill);
    await _process.exitCode;
  }

  Future<void> ready(FutureOr<bool> Function() isReady) => eventually(
    '$name to be ready',
    () {
      final code = exitCode;
      if (code != null) fail('$name ended with $code:\n$log');
      return isReady();
    },
    limit: const Duration(seconds: 20),
  );
}

Future<int> freePort() async {
  final socket = await ServerSocket.bind('127.0.0.1', 0);
  final port = socket.port;
  await socket.close();
  return port;
}

/// A running relay that believes unsigned tokens, as Firebase's emulator makes
/// them.
final class Relay {
  Relay._(this.program, this.port);

  static const String project = 'demo-dart';

  static Future<Relay> start([Map<String, String> environment = const {}]) => _start('serve', {
    'FIREBASE_PROJECT_ID': project,
    'FIREBASE_AUTH_EMULATOR_HOST': '127.0.0.1:9',
    'DUORELAY_HANDSHAKES_PER_SECOND_PER_IP': '0',
    'DUORELAY_WORKERS': '1',
    ...environment,
  });

  /// `duorelay demo`, which signs tokens itself.
  static Future<Relay> demo() => _start('demo', const {});

  static Future<Relay> _start(String command, Map<String, String> environment) async {
    final binary = Platform.environment['DUORELAY_BIN'];
    if (binary == null) fail('DUORELAY_BIN must name the duorelay program');
    final (port, adminPort) = (await freePort(), await freePort());
    final addresses = ['--listen', '127.0.0.1:$port', '--admin-listen', '127.0.0.1:$adminPort'];
    final program = await Program.start(binary, [command, ...addresses], environment: environment);
    final relay = Relay._(program, port);
    await program.ready(() async => await relay.status('/healthz/ready') == 200);
    return relay;
  }

  /// A token of the demo's identity provider for "ada".
  Future<String> demoToken({required bool forceRefresh}) async {
    final client = HttpClient();
    try {
      final request = await client.postUrl(Uri.parse('http://127.0.0.1:$port/demo/token'));
      request.headers.contentType = ContentType.json;
      request.write('{"user": "ada"}');
      final response = await request.close();
      return (jsonDecode(await utf8.decodeStream(response)) as Map)['token'] as String;
    } finally {
      client.close(force: true);
    }
  }

  final Program program;
  final int port;

  Uri get url => Uri.parse('ws://127.0.0.1:$port/ws');

  Future<int> status(String path) async {
    final client = HttpClient();
    try {
      final request = await client.getUrl(Uri.parse('http://127.0.0.1:$port$path'));
      final response = await request.close();
      await response.drain<void>();
      return response.statusCode;
    } on IOException {
      return 0;
    } finally {
      client.close(force: true);
    }
  }
}

/// Redis, empty, for the time of the test.
Future<String> startRedis() async {
  final port = await freePort();
  final program = await Program.start('redis-server', [
    ...['--port', '$port', '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'],
  ]);
  await program.ready(() => program.log.contains('Ready to accept connections'));
  return 'redis://127.0.0.1:$port';
}

/// An ID token as Firebase's emulator makes it: unsigned.
String idToken(String uid, {Duration life = const Duration(hours: 1), DateTime? issued}) {
  final now = (issued ?? DateTime.now()).millisecondsSinceEpoch ~/ 1000;
  String part(Map<String, Object?> object) =>
      base64Url.encode(utf8.encode(jsonEncode(object))).replaceAll('=', '');
  final header = part({'alg': 'none', 'typ': 'JWT'});
  final claims = part({
    'iss': 'https://securetoken.google.com/${Relay.project}',
    'aud': Relay.project,
    'sub': uid,
    'user_id': uid,
    'iat': now,
    'auth_time': now,
    'exp': now + life.inSeconds,
    'email': '$uid@example.com',
    'firebase': {'sign_in_provider': 'password', 'identities': <String, Object?>{}},
  });
  return '$header.$claims.';
}

/// A TCP proxy in front of relays: new connections go to [target], all may be
/// swallowed, and the way up may be thin.
final class Network {
  Network._(this._server, this.target) {
    _server.listen(_onConnection);
    afterwards(stop);
  }

  static Future<Network> before(Relay relay) => beforePort(relay.port);

  static Future<Network> beforePort(int port) async =>
      Network._(await ServerSocket.bind('127.0.0.1', 0), port);

  final ServerSocket _server;
  final List<_Way> _ways = [];

  /// The port that new connections go to.
  int target;

  /// Bytes a second from clients to the relay; null is no limit.
  int? upBytesPerSecond;

  /// Connections so far.
  int connections = 0;

  bool _swallows = false;

  Uri get url => Uri.parse('ws://127.0.0.1:${_server.port}/ws');

  /// Nothing goes through any more, and nothing is closed: a path that broke.
  /// New connections pass if [newOnes] do.
  void swallow({required bool newOnes}) {
    _swallows = !newOnes;
    for (final way in _ways) {
      way.swallows = true;
    }
  }

  /// New connections pass again.
  void mend() => _swallows = false;

  Future<void> _onConnection(Socket client) async {
    connections += 1;
    final up = await Socket.connect('127.0.0.1', target);
    _ways
      ..add(_Way(client, up, () => upBytesPerSecond)..swallows = _swallows)
      ..add(_Way(up, client, () => null)..swallows = _swallows);
  }

  Future<void> stop() async {
    await _server.close();
    for (final way in _ways) {
      way.from.destroy();
    }
  }
}

final class _Way {
  _Way(this.from, this.to, this._rate) {
    from.setOption(SocketOption.tcpNoDelay, true);
    unawaited(_run());
  }

  final Socket from;
  final Socket to;
  final int? Function() _rate;
  bool swallows = false;

  /// A thin way reads no more than it has passed on, so that the sender's own
  /// buffers fill.
  Future<void> _run() async {
    final clock = Stopwatch()..start();
    var free = 0;
    try {
      await for (final bytes in from) {
        if (swallows) continue;
        for (var at = 0; at < bytes.length;) {
          final rate = _rate();
          final end = rate == null || at + 300 > bytes.length ? bytes.length : at + 300;
          if (rate != null) {
            // A timer that was late is made up for, as a link would.
            free = max(free, clock.elapsedMicroseconds - 100000) + (end - at) * 1000000 ~/ rate;
            await Future<void>.delayed(Duration(microseconds: free - clock.elapsedMicroseconds));
          }
          to.add(bytes.sublist(at, end));
          at = end;
        }
      }
    } on SocketException {
      // The other end sees a connection that broke.
    }
    if (!swallows) to.destroy();
  }
}
