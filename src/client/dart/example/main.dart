// A phone in plain Dart. Start `duorelay demo`, open its page in a browser as
// the same user (http://localhost:3000/?user=ada), and then:
//
//   dart run example/main.dart http://localhost:3000 ada
//
// It streams a number thirty times a second on stream 1, and answers each
// message. The message "bye" ends it.
import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';

Future<void> main(List<String> arguments) async {
  final server = Uri.parse(arguments.firstOrNull ?? 'http://localhost:3000');
  final user = arguments.elementAtOrNull(1) ?? 'ada';

  final relay = DuoRelay(
    server.resolve('/ws'),
    device: Device.mobile,
    getToken: ({required forceRefresh}) => demoToken(server, user),
  );
  relay.statuses.listen((status) => print('status: $status'));
  relay.peers.listen(
    (peer) => print(peer == null ? 'alone' : 'the ${peer.device.name} is here'),
  );
  relay.frames.listen(
    (frame) => print('stream ${frame.stream}: ${frame.bytes.length} bytes'),
  );

  var count = 0;
  final ticks = Timer.periodic(const Duration(milliseconds: 33), (_) {
    final bytes = Uint8List(4)..buffer.asByteData().setUint32(0, count++);
    relay.sendFrame(1, bytes);
  });

  await for (final message in relay.messages) {
    print('message: ${message.data}');
    if (message.data == 'bye') break;
    try {
      await relay.sendAcked({'echo': message.data});
    } on SendException catch (error) {
      print('no answer: $error');
    }
  }
  ticks.cancel();
  await relay.close();
}

/// The demo signs anybody in. A real app asks its identity provider.
Future<String> demoToken(Uri server, String user) async {
  final client = HttpClient();
  try {
    final request = await client.postUrl(server.resolve('/demo/token'));
    final body = utf8.encode(jsonEncode({'user': user}));
    request.headers.contentType = ContentType.json;
    request.contentLength = body.length;
    request.add(body);
    final response = await request.close();
    final answer = jsonDecode(await utf8.decodeStream(response)) as Map;
    return answer['token'] as String;
  } finally {
    client.close(force: true);
  }
}
