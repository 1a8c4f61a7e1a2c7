/// The Dart client on a phone and the browser client in Chromium, each at a
/// relay of its own.
library;

import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';

import 'browser.dart';
import 'processes.dart';
import 'relay_test.dart';
import 'runner.dart';

void browserTests() => group('browser', () {
  test('frames, messages and acks go both ways, and an overwrite is seen', () async {
    final environment = {'REDIS_URL': await startRedis()};
    final forDesktop = await Relay.start(environment);
    final forPhone = await Relay.start(environment);
    final browser = await Browser.start();
    await browser.open(Uri.parse('http://127.0.0.1:${forDesktop.port}/healthz/live'));
    await browser.run('''
      const { duorelay } = await import('/duorelay.js');
      window.got = { frames: [], messages: [], peers: [] };
      window.relay = duorelay({ url: '/ws', getToken: () => args[0] });
      relay.on('frame', (stream, bytes) => got.frames.push([stream, ...bytes]));
      relay.on('message', ({ data }) => got.messages.push(data));
      relay.on('peer', (peer) => got.peers.push(peer && peer.connection));
    ''', [idToken('ada')]);
    final phone = Client(forPhone.url, 'ada', Device.mobile);
    await phone.withPeer();
    Future<Map<Object?, Object?>> got() async => (await browser.run('return got'))! as Map;
    await eventually('the page to see the phone', () async =>
        (await got())['peers'].toString().contains(phone.relay.welcome!.connection));

    // To the page.
    phone.relay.sendFrame(0x01, [0, 255]);
    phone.relay.sendFrame(0x80, [1]);
    phone.relay.send({'text': 'grüße 😀'});
    phone.relay.sendFrame(0xff, const []);
    await phone.relay.sendAcked([1, null]);
    final page = await got();
    equal(page['messages'], [{'text': 'grüße 😀'}, [1, null]]);
    equal((page['frames']! as List).toSet().length, 3);
    equal((page['frames']! as List).where((frame) => (frame as List).first as int >= 0x80).toList(), [[0x80, 1], [0xff]]);

    // To the phone.
    final before = Uint8List(60000)..fillRange(0, 60000, 7);
    await browser.run('''
      relay.frame(0x02, new Uint8Array([9]));
      relay.frame(0x81, new Uint8Array(60000).fill(7));
      relay.send('one');
      await relay.send({ two: 2 }, { ack: true });
    ''');
    equal(phone.messages, ['one', {'two': 2}]);
    equal(phone.frames.singleWhere((frame) => frame.stream == 0x81).bytes, before);
    equal(phone.frames.singleWhere((frame) => frame.stream == 2).bytes, [9]);

    // Another phone takes over.
    final second = Client(forDesktop.url, 'ada', Device.mobile);
    await second.withPeer();
    await eventually('the overwrite', () => phone.relay.state == RelayState.overwritten);
    await eventually('the page to see the second phone', () async =>
        ((await got())['peers']! as List).last == second.relay.welcome?.connection);
    await second.relay.sendAcked('from the second');

    // Nobody is there to acknowledge.
    await browser.run('relay.close()');
    await eventually('the page to leave', () => second.relay.peer == null);
    try {
      await second.relay.sendAcked('to nobody');
      fail('an acknowledgement of nobody');
    } on SendException catch (error) {
      equal(error.code, 'peer_absent');
    }
  });
});
