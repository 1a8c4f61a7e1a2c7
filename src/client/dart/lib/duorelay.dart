/// Client of a duorelay relay: a user's phone and desktop stream to each other.
///
/// ```dart
/// final relay = DuoRelay(
///   Uri.parse('wss://relay.example.com/ws'),
///   getToken: ({required forceRefresh}) async =>
///       FirebaseAuth.instance.currentUser?.getIdToken(forceRefresh),
/// );
/// relay.frames.listen((frame) => draw(frame.stream, frame.bytes));
/// relay.messages.listen((message) => print(message.data));
/// relay.peers.listen((peer) async {
///   if (peer == null) return; // the other device is not there
///   relay.sendFrame(0x01, pose); // 0x00-0x7F: only the newest one matters
///   relay.sendFrame(0x80, chunk); // 0x80-0xFF: each one, in order
///   relay.send({'hello': 'world'}); // JSON, in order with those
///   await relay.sendAcked({'saved': true}); // until the other device has it
/// });
/// ```
library;

export 'src/events.dart';
export 'src/relay.dart' show DuoRelay;
export 'src/storage.dart';
export 'src/timing.dart' show Timing;
export 'src/types.dart';
