/// Rules that are this package's own, beside the shared scenarios.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';

import 'package:duorelay/duorelay.dart';
import 'package:duorelay/src/core/affinity.dart';
import 'package:duorelay/src/core/handshake.dart';
import 'package:duorelay/src/io/sha1.dart';
import 'package:duorelay/src/io/socket.dart';

import 'runner.dart';
import 'scripted.dart';

void ruleTests() {
  group('caller', () {
    test('a URL that no relay can have is a mistake at once', () {
      for (final url in ['ftp://relay.test/ws', 'relay.test/ws', 'wss://relay.test/ws#x', 'wss:///ws', '']) {
        throws<ArgumentError>(() => Given(url: url));
      }
      throws<ArgumentError>(() => Given(client: 'a b'));
    });

    test('http is ws, and a query and a path stay', () async {
      final given = Given(url: 'https://relay.test/a/ws?x=1');
      await given.world.settle();
      final url = given.socket.url;
      equal([url.scheme, url.path, url.queryParameters['x']], ['wss', '/a/ws', '1']);
      check(!url.queryParameters.containsKey('device'), 'the relay chooses the device');
    });

    test('a stream out of range, and what is no JSON, are mistakes of the caller', () async {
      final given = Given();
      await given.online();
      throws<RangeError>(() => given.relay.sendFrame(256, const []));
      throws<RangeError>(() => given.relay.sendFrame(-1, const []));
      throws<JsonUnsupportedObjectError>(() => given.relay.send(Object()));
      equal(throws<SendException>(() => given.relay.sendFrame(1, List.filled(65536, 0))).code, 'too_big');
      equal(given.relay.state.name, 'online');
    });

    test('onLog gets what the client does, without tokens and payloads', () async {
      final given = Given();
      final socket = await given.online({'peer': {'connection': 'p', 'generation': 1}});
      given.relay.send({'text': 'secret'});
      given.relay.sendFrame(0x80, [7, 7, 7]);
      socket.say({'type': 'message', 'from': 'desktop', 'data': 'secret'});
      socket.close(4003);
      await given.world.pass(1000);
      for (final word in ['connecting', 'online', 'waiting']) {
        check(given.log.any((line) => line.contains(word)), '$word: ${given.log}');
      }
      check(!given.log.any(RegExp('token[0-9]|secret|7, 7').hasMatch), '${given.log}');
    });

    test('a listener may call the relay, and may close it', () async {
      final given = Given();
      given.relay.messages.listen((message) => given.relay.send({'echo': message.data}));
      given.relay.peers.listen((peer) {
        if (peer == null) unawaited(given.relay.close());
      });
      final socket = await given.online({'peer': {'connection': 'p', 'generation': 1}});
      socket.say({'type': 'message', 'from': 'desktop', 'data': 1});
      equal(socket.said('send').map((message) => message['data']).toList(), [{'echo': 1}]);
      socket.say({'type': 'peer', 'device': 'desktop', 'state': 'disconnected', 'connection': 'p', 'generation': 1});
      equal(given.relay.state.name, 'closed');
      check(socket.ended, 'the socket lives');
      await given.world.pass(100000);
      equal(given.world.sockets.length, 1);
      equal(given.world.timers, 0, 'timers');
    });

    test('close() at any moment leaves no timer and no socket', () async {
      final moments = <String, Future<void> Function(Given)>{
        'at once': (_) async {},
        'before the welcome': (given) => given.world.settle(),
        'online': (given) => given.online(),
        'waiting': (given) async => (await given.online()).close(1006),
        'moving': (given) async {
          final socket = await given.online();
          socket.say({'type': 'reconnect', 'reason': 'draining', 'in_ms': 0, 'deadline_ms': 5000});
          await given.world.pass(1);
          socket.pong();
        },
        'in the background': (given) async {
          await given.online();
          given.relay.background();
        },
      };
      for (final MapEntry(key: name, value: reach) in moments.entries) {
        final given = Given();
        await reach(given);
        await given.relay.close();
        final before = given.world.sockets.length;
        await given.world.pass(3600000);
        equal([given.world.timers, given.world.sockets.length], [0, before], name);
        check(given.world.sockets.every((socket) => socket.ended), '$name: a socket lives');
      }
    });
  });

  group('handshake', () {
    test('a refusal comes with its status, and says when to come back', () async {
      final given = Given();
      await given.world.settle();
      given.socket.events.onFailed(
        const HandshakeFailure(status: 503, code: 'draining', detail: 'leaving', retryAfterMs: 2000),
      );
      equal([given.relay.state.name, given.relay.status.code], ['waiting', 'draining']);
      equal(given.events('refused').single.single, {
        'status': 503, 'code': 'draining', 'detail': 'leaving', 'final': false, 'retryAfterMs': 2000,
      });
      equal(given.world.asked.length, 0, 'questions');
      given.relay.networkChanged();
      await given.world.pass(1999);
      equal(given.world.sockets.length, 1);
      await given.world.pass(500);
      equal(given.world.sockets.length, 2);
    });

    test('a network that is away is no question to the relay', () async {
      final given = Given();
      await given.world.settle();
      given.socket.events.onFailed(const HandshakeFailure.network('unreachable'));
      equal(given.relay.status.code, 'network');
      equal(given.world.asked.length, 0);
    });

    test('a question to the relay that hangs has an end', () async {
      final given = Given(world: _Hanging());
      await given.world.settle();
      given.socket.events.onFailed(const HandshakeFailure(status: 502));
      await given.world.pass(9999);
      equal(given.relay.state.name, 'connecting');
      await given.world.pass(1);
      equal(given.relay.state.name, 'waiting');
    });

    test('a token with a line feed is no header', () async {
      final given = Given(getToken: (_, __) => 'a\r\nX: y');
      await given.world.pass(1);
      equal([given.relay.status.code, given.forced], ['malformed_token', [false, true]]);
      equal(given.world.sockets.length, 0);
    });
  });

  group('life', () {
    test('a process that was suspended reads first, and judges the path then', () async {
      final given = Given();
      final socket = await given.online();
      socket.pong();
      await given.world.pass(10000);
      given.world.suspend(60000);
      await given.world.pass(0);
      equal(given.relay.state.name, 'online');
      socket.pong();
      await given.world.pass(5000);
      equal(given.relay.state.name, 'online');
    });

    test('a process whose timers are always late leaves a dead path all the same', () async {
      final given = Given();
      final socket = await given.online();
      socket.pong();
      await given.world.pass(10000);
      for (var minute = 0; minute < 3; minute += 1) {
        given.world.suspend(60000);
        await given.world.pass(0);
      }
      check(given.relay.state.name != 'online', 'still online on a path that says nothing for three minutes');
    });

    test('in the background nothing is tried; what was queued leaves in the foreground', () async {
      final given = Given();
      final first = await given.online();
      given.relay.background();
      check(first.ended, 'the socket lives');
      given.relay
        ..send('kept')
        ..networkChanged();
      await given.world.pass(3600000);
      equal(given.world.sockets.length, 1);
      given.relay.resume();
      final second = await given.online();
      equal(second.said('send').map((message) => message['data']).toList(), ['kept']);
    });

    test('the socket says that it takes no more: newer frames replace those that wait', () async {
      final given = Given();
      final socket = await given.online();
      socket.events.onWritable(false);
      for (var frame = 0; frame < 5; frame += 1) {
        given.relay.sendFrame(1, [frame]);
      }
      given.relay.sendFrame(2, [9]);
      given.relay.send('later');
      equal(socket.frames, const <Object>[]);
      socket.events.onWritable(true);
      equal(socket.frames, [[1, 4], [2, 9]]);
      equal(socket.said('send').length, 1);
      equal(given.relay.dropped, 4);
    });

    test('a relay that reports a queue is sent less, and the newest', () async {
      final given = Given();
      final socket = await given.online();
      // A path of one frame each 100 ms, while the app has one each 33 ms.
      var read = 1;
      var last = 0;
      for (var frame = 0; frame < 300; frame += 1) {
        given.relay.sendFrame(1, [...List.filled(300, 0), frame & 255]);
        await given.world.pass(33);
        final sent = socket.sent.length;
        final due = given.world.now ~/ 100;
        if (due > last && read < sent) {
          last = due;
          read += 1;
          socket.say({'type': 'received', 'messages': read, 'time': given.world.now + 5000});
        }
      }
      final onTheWay = socket.sent.length - read;
      check(onTheWay <= 5, '$onTheWay messages are on their way');
      check(given.relay.dropped > 100, '${given.relay.dropped} dropped');
      check(socket.said('reports').any((message) => message['every_ms'] == 100), 'a faster pace is asked for');
    });

    test('a message that nobody listens to is not acknowledged', () async {
      final world = World();
      final relay = DuoRelay(Uri.parse('wss://relay.test/ws'),
          environment: world, getToken: ({required forceRefresh}) => 'token', client: 'tab');
      afterwards(relay.close);
      await world.settle();
      final socket = world.sockets.single..welcome();
      socket.say({'type': 'message', 'from': 'desktop', 'data': 1, 'id': 'a', 'ack': true});
      equal(socket.said('ack').length, 0);
      final heard = relay.messages.listen((_) {});
      socket.say({'type': 'message', 'from': 'desktop', 'data': 2, 'id': 'b', 'ack': true});
      equal(socket.said('ack').map((message) => message['id']).toList(), ['b']);
      await heard.cancel();
    });

    test('a fresh token is asked for once, after the session ended with its token', () async {
      final given = Given();
      (await given.online()).close(4003);
      await given.world.pass(1000);
      (await given.online()).close(1006);
      await given.world.pass(1000);
      equal(given.forced, [false, true, false]);

      final stopped = Given();
      (await stopped.online()).close(4003);
      stopped.relay.signedOut();
      stopped.relay.connect();
      await stopped.world.settle();
      equal(stopped.forced, [false, false], 'another user may come');
    });

    test('a pace that no relay may ask for is bounded', () async {
      final given = Given();
      final socket = await given.online();
      await given.world.pass(2000);
      socket.say({'type': 'reports', 'every_ms': 0});
      final before = socket.said('received').length;
      for (var frame = 0; frame < 100; frame += 1) {
        socket.bytes([1, frame]);
        await given.world.pass(10);
      }
      final reports = socket.said('received').length - before;
      check(reports > 10 && reports <= 21, '$reports reports in a second');
    });

    test('drained() waits for half of the queue, and fails when the connection stops', () async {
      final given = Given(queueBytes: 1000);
      final socket = await given.online();
      socket.events.onWritable(false);
      given.relay.sendFrame(0x80, List.filled(899, 0));
      equal(given.relay.queued, 900);
      var outcome = '';
      unawaited(given.relay.drained().then((_) => outcome = 'drained'));
      await given.world.settle();
      equal(outcome, '');
      socket.events.onWritable(true);
      await given.world.settle();
      equal([outcome, given.relay.queued], ['drained', 0]);

      socket.events.onWritable(false);
      given.relay.sendFrame(0x80, List.filled(899, 0));
      unawaited(given.relay.drained().then(
        (_) => outcome = 'drained',
        onError: (Object error) => outcome = (error as SendException).code,
      ));
      socket.close(4002);
      await given.world.settle();
      equal(outcome, 'not_connected');
    });
  });

  group('storage', () {
    test('a restarted app goes on under its name, above its last attempt', () async {
      final folder = await Directory.systemTemp.createTemp('duorelay-dart-');
      afterwards(() => folder.delete(recursive: true));
      final path = '${folder.path}/client.json';
      Future<Map<String, String>> start({required int startMs}) async {
        final given = Given(client: null, storage: FileClientStorage(path), world: World(startMs: startMs));
        await eventually('the socket', () => given.world.sockets.isNotEmpty);
        return given.socket.url.queryParameters;
      }

      final first = await start(startMs: 2000);
      equal([first['client'], first['attempt']], ['random2', '2000']);
      // The clock fell, and the random names begin anew.
      final second = await start(startMs: 1000);
      equal([second['client'], second['attempt']], ['random2', '2001']);
      await File(path).writeAsString('{"client": "a b", "attempt": 1e9');
      final third = await start(startMs: 3000);
      equal([third['client'], third['attempt']], ['random2', '3000']);
    });

    test('a storage that fails or hangs does not keep the app from connecting', () async {
      final failing = Given(client: null, storage: _FailingStorage());
      await failing.world.settle();
      equal(failing.world.sockets.length, 1);
    });
  });

  group('wire', () {
    test('affinity is FNV-1a of the user', () {
      equal(affinityOf('ada'), '38390dbb');
      equal(affinityOf('TENANT/ada'), '215c575e');
      equal(affinityOf(''), '811c9dc5');
      equal(userOf('no token'), null);
      equal(userOf('a.b.c'), null);
      equal(userOf('a.${base64Url.encode(utf8.encode('{"sub": 7}'))}.c'), null);
    });

    test('SHA-1 has the values of RFC 3174, and WebSocket handshakes of RFC 6455', () {
      equal(hex(sha1(ascii.encode('abc'))), 'a9993e364706816aba3e25717850c26c9cd0d89d');
      equal(hex(sha1(const [])), 'da39a3ee5e6b4b0d3255bfef95601890afd80709');
      equal(
        hex(sha1(ascii.encode('abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq'))),
        '84983e441c3bd26ebaae4aa1f95129e5e54670f1',
      );
      const key = 'dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
      equal(base64.encode(sha1(ascii.encode(key))), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
    });

    test('Retry-After is seconds or a date', () {
      final now = DateTime.utc(1994, 11, 6, 8, 49, 30);
      equal(parseRetryAfter('7', now), 7000.0);
      equal(parseRetryAfter('Sun, 06 Nov 1994 08:49:37 GMT', now), 7000.0);
      equal(parseRetryAfter('Sun, 06 Nov 1994 08:49:00 GMT', now), 0.0);
      for (final nothing in [null, '', 'soon', '-1', '9' * 30]) {
        equal(parseRetryAfter(nothing, now), null, '$nothing');
      }
    });

    test('what a relay never sends does no harm', () async {
      final given = Given();
      final socket = await given.online({'limits': 7, 'features': {}, 'peer': 'x', 'expires_at': '1'});
      for (final text in ['', '[]', '{', '{"type":1}', '{"type":"peer"}', '{"type":"error","code":1}',
          '{"type":"pong","id":7}', '{"type":"received","messages":"x"}', '{"type":"reports","every_ms":{}}',
          '{"type":"message","from":3,"id":4,"ack":true}', '{"type":"expiring"}', '{"type":"reconnect"}',
          '{"type":"signal"}', '{"type":"welcome"}', '{"type":"acked"}', '{"type":"pressure"}']) {
        socket.events.onText(text);
      }
      socket.bytes(const []);
      await given.world.pass(10);
      equal(given.relay.state.name, 'online');
      socket.say({'type': 'overwritten', 'by': 1});
      equal(given.relay.state.name, 'overwritten');
    });
  });
}

class _Hanging extends World {
  @override
  Future<HandshakeFailure?> askSession(Uri url, String token) => Completer<HandshakeFailure?>().future;
}

final class _FailingStorage implements ClientStorage {
  @override
  ClientRecord? read() => throw const FileSystemException('full');

  @override
  Future<void> write(ClientRecord record) async => throw const FileSystemException('full');
}
