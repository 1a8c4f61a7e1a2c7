/// The client against real relays.
library;

import 'dart:async';
import 'dart:io';
import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';

import 'processes.dart';
import 'runner.dart';

/// A client of [uid] with all that it received.
final class Client {
  Client(Uri url, String uid, Device device, {GetToken? getToken, Timing timing = const Timing()}) {
    relay = DuoRelay(
      url,
      getToken: getToken ?? ({required forceRefresh}) => idToken(uid),
      device: device,
      timing: timing,
      onLog: (line) => log.add('${_watch.elapsedMilliseconds} $line'),
    );
    relay.messages.listen((message) => messages.add(message.data));
    relay.frames.listen(frames.add);
    relay.events.listen(events.add);
    relay.statuses.listen((status) => states.add(status.state));
    afterwards(relay.close);
  }

  static final Stopwatch _watch = Stopwatch()..start();

  late final DuoRelay relay;
  final List<Object?> messages = [];
  final List<Frame> frames = [];
  final List<RelayEvent> events = [];
  final List<RelayState> states = [];
  final List<String> log = [];

  Future<void> online() => eventually(
    'the client to be online: $log',
    () => relay.state == RelayState.online,
  );

  Future<void> withPeer() => eventually('the other device: $log', () => relay.peer != null);
}

/// Two devices of one user.
Future<(Client, Client)> pair(Uri desktopUrl, Uri mobileUrl, String uid) async {
  final desktop = Client(desktopUrl, uid, Device.desktop);
  final mobile = Client(mobileUrl, uid, Device.mobile);
  await desktop.withPeer();
  await mobile.withPeer();
  return (desktop, mobile);
}

void relayTests() => group('relay', () {
  test('a header brings the token; frames and messages go both ways', () async {
    final relay = await Relay.start();
    final phone = Client(relay.url, 'ada', Device.mobile);
    await phone.online();
    equal(phone.relay.welcome?.uid, 'ada');
    equal(phone.relay.welcome?.device.name, 'mobile');
    final desktop = Client(relay.url, 'ada', Device.desktop);
    await desktop.withPeer();
    await phone.withPeer();

    phone.relay.sendFrame(0x01, [7, 8]);
    phone.relay.sendFrame(0x80, Uint8List(60000));
    phone.relay.send({'text': 'grüße 😀'});
    desktop.relay.send(null);
    await eventually('all to arrive', () =>
        desktop.frames.length == 2 && desktop.messages.length == 1 && phone.messages.length == 1);
    // Volatile and reliable frames have no order between them.
    final streams = {for (final frame in desktop.frames) frame.stream: frame.bytes};
    equal(streams[0x01], [7, 8]);
    equal(streams[0x80]?.length, 60000);
    equal(desktop.messages, [{'text': 'grüße 😀'}]);
    equal(phone.messages, [null]);
    await eventually('a round trip', () => phone.relay.rtt != null);
  });

  test('another app takes over: the first one stops until connect()', () async {
    final relay = await Relay.start();
    final first = Client(relay.url, 'ada', Device.mobile);
    await first.online();
    final second = Client(relay.url, 'ada', Device.mobile);
    await second.online();
    await eventually('the overwrite', () => first.relay.state == RelayState.overwritten);
    final event = first.events.whereType<Overwritten>().single;
    equal(event.connection, second.relay.welcome?.connection);
    equal(event.sameClient, false);
    first.relay.connect();
    await eventually('the other one to stop', () => second.relay.state == RelayState.overwritten);
    await first.online();
  });

  test('a rolling restart: both devices move twice, and nothing reliable is lost or doubled', () async {
    final environment = {
      'REDIS_URL': await startRedis(),
      'DUORELAY_DRAIN_DELAY_SECONDS': '1',
      'DUORELAY_DRAIN_SECONDS': '1',
    };
    var serving = await Relay.start(environment);
    final network = await Network.before(serving);
    final (desktop, phone) = await pair(network.url, network.url, 'ada');
    final traffic = [Traffic(desktop, phone), Traffic(phone, desktop)];

    for (var restart = 0; restart < 2; restart += 1) {
      final next = await Relay.start(environment);
      network.target = next.port;
      final instances = {for (final client in [desktop, phone]) client: client.relay.welcome?.instance};
      serving.program.signal(ProcessSignal.sigterm);
      await eventually('both devices to move: ${desktop.log} ${phone.log}', () =>
          instances.entries.every((entry) =>
              entry.key.relay.welcome != null && entry.key.relay.welcome?.instance != entry.value));
      equal(await serving.program.ended, 0, 'the exit code');
      serving = next;
      for (final way in traffic) {
        await way.goesOn();
      }
    }
    for (final way in traffic) {
      await way.check();
    }
    for (final client in [desktop, phone]) {
      equal(client.states, [RelayState.online], 'states');
      equal(client.events.whereType<RelayError>().toList(), const <Object>[], 'errors');
    }
  });

  test('a token that ends soon is refreshed in the band, and the connection stays', () async {
    final relay = await Relay.start();
    var calls = 0;
    final phone = Client(relay.url, 'ada', Device.mobile, getToken: ({required forceRefresh}) {
      calls += 1;
      return idToken('ada', life: forceRefresh ? const Duration(hours: 1) : const Duration(seconds: 3));
    });
    await phone.online();
    final first = phone.events.whereType<Welcomed>().single.welcome.expiresAt;
    await eventually('the fresh token', () => phone.events.whereType<Authenticated>().isNotEmpty);
    check(phone.relay.expiresAt!.isAfter(first), 'the session ends later');
    await eventually('the first token to end', () => DateTime.now().isAfter(first.add(const Duration(seconds: 2))));
    equal(phone.states, [RelayState.online]);
    equal(calls, 2, 'one chain of refreshes');
  });

  test('a token that could not be refreshed ends the connection; a fresh one brings it back', () async {
    final relay = await Relay.start();
    var failures = 0;
    final phone = Client(relay.url, 'ada', Device.mobile, getToken: ({required forceRefresh}) {
      if (!forceRefresh) return idToken('ada', life: const Duration(seconds: 2));
      if (failures++ == 0) throw StateError('offline');
      return idToken('ada');
    });
    await phone.online();
    await eventually('the end of the session', () => phone.events.whereType<LinkClosed>().isNotEmpty);
    equal(phone.events.whereType<LinkClosed>().single.code, 4003);
    equal(phone.relay.status.code, 'token_expired');
    await phone.online();
    equal(phone.events.whereType<RelayError>().first.code, 'token_unavailable');
  });

  for (final sends in [true, false]) {
    test('a path that swallows everything is left within 5 s while frames ${sends ? 'go out' : 'come in'}', () async {
      final relay = await Relay.start();
      final network = await Network.before(relay);
      final (desktop, phone) = await pair(relay.url, network.url, 'ada');
      final sender = sends ? phone : desktop;
      final timer = Timer.periodic(
        const Duration(milliseconds: 33),
        (_) => sender.relay.sendFrame(1, Uint8List(300)),
      );
      afterwards(timer.cancel);
      final receiver = sends ? desktop : phone;
      await eventually('frames', () => receiver.frames.length > 30);
      // By the states that the client reports: it may be back before anybody looks.
      final seen = phone.states.length;
      network.swallow(newOnes: true);
      final watch = Stopwatch()..start();
      await eventually(
        'the silence to be noticed: ${phone.log}',
        () => phone.states.skip(seen).any((state) => state != RelayState.online),
      );
      // The contract's 5 s, and one for a busy machine.
      check(watch.elapsedMilliseconds < 6000, 'noticed after ${watch.elapsedMilliseconds} ms');
      await phone.online();
      check(watch.elapsedMilliseconds < 9000, 'back after ${watch.elapsedMilliseconds} ms');
      final before = receiver.frames.length;
      await eventually('frames again', () => receiver.frames.length > before + 10);
    });
  }

  test('in the background it lets the slot go; in the foreground it is back, with what was sent meanwhile', () async {
    final relay = await Relay.start();
    final (desktop, phone) = await pair(relay.url, relay.url, 'ada');
    phone.relay.background();
    equal(phone.relay.status.code, 'background');
    await eventually('the slot to be empty', () => desktop.relay.peer == null);
    phone.relay.send('from the background');
    equal(phone.relay.state, RelayState.waiting);
    final watch = Stopwatch()..start();
    phone.relay.resume();
    await phone.online();
    // A second on a quiet machine, as the scripted tests hold; no pause of a back-off.
    check(watch.elapsedMilliseconds < 3000, 'back after ${watch.elapsedMilliseconds} ms');
    await eventually('the message', () => desktop.messages.length == 1);
    equal(desktop.messages, ['from the background']);
  });

  test('a refusal is read from the handshake, with its reason', () async {
    final relay = await Relay.start();
    final phone = Client(relay.url, 'ada', Device.mobile,
        getToken: ({required forceRefresh}) => idToken('ada', life: const Duration(seconds: -5)));
    await eventually('the refusal', () => phone.relay.state == RelayState.refused);
    equal(phone.relay.status.code, 'token_expired');
    equal(phone.events.whereType<Refused>().map((event) => [event.status, event.isFinal]).toList(),
        [[403, false], [403, true]]);
  });

  test('close() leaves nothing behind, over a path that swallows the goodbye too', () async {
    final relay = await Relay.start();
    final network = await Network.before(relay);
    final phone = Client(network.url, 'ada', Device.mobile);
    await phone.online();
    network.swallow(newOnes: false);
    final watch = Stopwatch()..start();
    await phone.relay.close();
    check(watch.elapsedMilliseconds < 2000, 'closed after ${watch.elapsedMilliseconds} ms');
    equal(phone.relay.state, RelayState.closed);
    throws<SendException>(() => phone.relay.send(1));
    throws<SendException>(phone.relay.connect);
  });
});

/// Numbered reliable messages and frames from one device to the other.
final class Traffic {
  Traffic(this._from, this._to) {
    _to.relay.messages.listen((message) => _arrived.add(message.data! as int));
    _to.relay.frames.listen((frame) => _arrived.add(ByteData.sublistView(frame.bytes).getUint32(0)));
    _timer = Timer.periodic(const Duration(milliseconds: 5), (_) => _send());
    afterwards(_timer.cancel);
  }

  final Client _from;
  final Client _to;
  final List<int> _arrived = [];
  final Set<int> _acked = {};
  final List<String> _refused = [];
  late final Timer _timer;
  int _sent = 0;

  void _send() {
    if (_sent % 20 == 0) {
      final number = _sent;
      unawaited(_from.relay.sendAcked(number).then(
        (_) => _acked.add(number),
        onError: (Object error) => _refused.add('$number: $error'),
      ));
    } else if (_sent.isEven) {
      _from.relay.send(_sent);
    } else {
      _from.relay.sendFrame(0x80, Uint8List(4)..buffer.asByteData().setUint32(0, _sent));
    }
    _sent += 1;
  }

  Future<void> goesOn() {
    final enough = _arrived.length + 50;
    return eventually('traffic to go on', () => _arrived.length > enough);
  }

  /// Everything has arrived, once and in order, and was acknowledged.
  Future<void> check() async {
    _timer.cancel();
    await eventually('the last of $_sent', () => _arrived.contains(_sent - 1));
    equal(_arrived, List.generate(_sent, (number) => number), 'arrived');
    await eventually('the last acknowledgement', () => _acked.length + _refused.length == (_sent + 19) ~/ 20);
    equal(_refused, const <String>[], 'acknowledgements that failed');
  }
}
