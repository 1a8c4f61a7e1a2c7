/// The client against real relays.
library;

import 'dart:async';
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
    equal([desktop.frames[0].stream, ...desktop.frames[0].bytes], [1, 7, 8]);
    equal(desktop.frames[1].bytes.length, 60000);
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
});
