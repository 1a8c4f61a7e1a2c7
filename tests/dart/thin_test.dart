/// Thin ways: up, frames stay fresh, because the relay's reports bound what is
/// under way; down, a file arrives at the receiver's speed.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';
import 'package:duorelay/src/core/pacing.dart';

import 'processes.dart';
import 'relay_test.dart';
import 'runner.dart';
import 'scripted.dart';

void thinTests() => group('thin', () {
  test('over half of what frames need, to a relay and on: within 0.6 s, and the link is used', () async {
    final relay = await Relay.start();
    final network = await Network.before(relay);
    final (desktop, phone) = await pair(relay.url, network.url, 'ada');
    final stream = _Stream(phone, network);
    desktop.relay.frames.listen((frame) => stream.onFrame(frame.bytes));
    await stream.isFresh();
  });

  test('the same to an end that does nothing but report', () async {
    final relay = await ReportingRelay.start();
    final network = await Network.beforePort(relay.port);
    final phone = Client(network.url, 'ada', Device.mobile);
    await phone.online();
    final stream = _Stream(phone, network);
    relay.onFrame = (frame) => stream.onFrame(Uint8List.sublistView(frame, 1));
    await stream.isFresh();
  });

  // The long form: FILE_CHUNKS=320 QUEUE_BYTES=1048576, which is 5 MB with the relay's own queue.
  final chunks = int.parse(Platform.environment['FILE_CHUNKS'] ?? '48');
  test('a file to a slow receiver arrives whole, at its speed, and nobody is closed', () async {
    final relay = await Relay.start({'DUORELAY_QUEUE_BYTES': Platform.environment['QUEUE_BYTES'] ?? '131072'});
    final (desktop, phone) = await pair(relay.url, await _thinDown(relay.port, 100000), 'ada');
    final watch = Stopwatch()..start();
    for (var index = 0; index < chunks; index += 1) {
      await desktop.relay.drained();
      desktop.relay.sendFrame(0x80, Uint8List(16 * 1024)..fillRange(0, 16 * 1024, index % 256));
    }
    await eventually('all chunks: ${phone.log}', () => phone.frames.length == chunks, limit: const Duration(seconds: 100));
    final speed = chunks * 16 * 1024 / watch.elapsedMilliseconds;
    stdout.writeln('   ${chunks * 16} KiB in ${watch.elapsedMilliseconds} ms: ${speed.round()} KB/s');
    equal(phone.frames.map((frame) => frame.bytes.first).toList(), List.generate(chunks, (index) => index % 256));
    for (final client in [desktop, phone]) {
      equal(client.states.where((state) => state != RelayState.connecting).toList(), [RelayState.online], '${client.log}');
    }
    // The link carries 100 KB/s; a busy machine less.
    check(speed > 30, '$speed KB/s');
  }, limit: const Duration(seconds: 110));
});

/// The address of a path that carries so many bytes a second down, and whose
/// kernel buffers hold little.
Future<Uri> _thinDown(int port, int bytesPerSecond) async {
  final script = Platform.script.resolve('../client/real/thin.py').toFilePath();
  final program = await Program.start('python3', [script, '$port', '0', '$bytesPerSecond']);
  final announced = RegExp(r'^(\d+)$', multiLine: true);
  await program.ready(() => announced.hasMatch(program.log));
  return Uri.parse('ws://127.0.0.1:${announced.firstMatch(program.log)!.group(1)}/ws');
}

/// Frames with the time at which the app made them, over a link of half of
/// what they need.
final class _Stream {
  _Stream(this._phone, Network network) {
    // 308 bytes with the WebSocket's header, 30 times a second.
    network.upBytesPerSecond = 308 * 30 ~/ 2;
    final timer = Timer.periodic(const Duration(microseconds: 33333), (_) {
      final bytes = Uint8List(299)..buffer.asByteData().setUint32(0, _watch.elapsedMilliseconds);
      _phone.relay.sendFrame(1, bytes);
    });
    afterwards(timer.cancel);
  }

  final Client _phone;
  final Stopwatch _watch = Stopwatch()..start();
  final List<int> _ages = [];

  void onFrame(Uint8List bytes) {
    final now = _watch.elapsedMilliseconds;
    if (now > 10000) _ages.add(now - ByteData.sublistView(bytes).getUint32(0));
  }

  Future<void> isFresh() async {
    await eventually('20 s of frames', () => _watch.elapsedMilliseconds > 20000, limit: const Duration(seconds: 30));
    _ages.sort();
    final p99 = _ages[_ages.length * 99 ~/ 100];
    stdout.writeln('   ${_ages.length} frames in 10 s, age p50 ${_ages[_ages.length ~/ 2]} ms, p99 $p99 ms');
    // Without the window even the half is older than 7 s.
    check(p99 <= 600, 'the age is $p99 ms');
    check(_ages.length > 60, '${_ages.length} frames of the 150 that the link can carry');
    check(_phone.relay.dropped > 100, '${_phone.relay.dropped} frames were replaced');
  }
}

/// A relay's end of a socket, which reports what it reads, as far as these
/// tests need it.
final class ReportingRelay {
  ReportingRelay._(this._server) {
    _server.transform(WebSocketTransformer(protocolSelector: (_) => 'duorelay.v1')).listen(_onSocket);
    afterwards(() => _server.close(force: true));
  }

  static Future<ReportingRelay> start() async => ReportingRelay._(await HttpServer.bind('127.0.0.1', 0));

  final HttpServer _server;
  void Function(Uint8List frame) onFrame = (_) {};

  int get port => _server.port;

  void _onSocket(WebSocket socket) {
    final clock = Stopwatch()..start();
    double now() => clock.elapsedMicroseconds / 1000 + 12345; // another origin than the client's
    final reporter = Reporter();
    Timer? timer;
    void say(Map<String, Object?> message) => socket.add(jsonEncode(message));
    void onDue() {
      timer = null;
      final report = reporter.report(now());
      if (report != null) say({'type': 'received', 'messages': report.messages, 'time': report.time});
    }

    say(usualWelcome);
    socket.listen((message) {
      var type = '';
      if (message is String) {
        final object = jsonDecode(message) as Map<String, Object?>;
        type = object['type']! as String;
        if (type == 'ping') say({'type': 'pong', 'id': object['id'], 'time': DateTime.now().millisecondsSinceEpoch});
        if (type == 'reports') reporter.paceMs = object['every_ms']! as int;
      } else {
        onFrame(message as Uint8List);
      }
      reporter.onRead(now(), makesDue: !const {'received', 'reports', 'ping', 'pong'}.contains(type));
      final wait = reporter.dueAt - now();
      if (wait <= 0) {
        onDue();
      } else if (wait.isFinite) {
        timer ??= Timer(Duration(microseconds: (wait * 1000).ceil()), onDue);
      }
    }, onDone: () => timer?.cancel());
  }
}
