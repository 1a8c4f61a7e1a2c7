/// The samples of the package, as they stand in its files.
library;

import 'dart:io';

import 'package:duorelay/duorelay.dart';

import 'processes.dart';
import 'relay_test.dart';
import 'runner.dart';

final Uri _package = Platform.script.resolve('../../src/client/dart/');

/// What the README's sample has from Flutter and from its app.
const String _flutter = '''
final class FirebaseAuth {
  static final instance = FirebaseAuth();
  User? get currentUser => User();
  Stream<User?> idTokenChanges() => Stream.value(User());
}

final class User {
  Future<String?> getIdToken(bool forceRefresh) async => 'TOKEN';
}

void draw(int stream, List<int> bytes) {}
''';

Future<Program> _dart(List<String> arguments) {
  // Both may have a path that is relative to where this program was started.
  final packages = Uri.base.resolve(Platform.packageConfig!).toFilePath();
  return Program.start(Platform.resolvedExecutable, ['--packages=$packages', ...arguments]);
}

Future<Program> _runText(String program) async {
  final folder = await Directory.systemTemp.createTemp('duorelay-dart-');
  afterwards(() => folder.delete(recursive: true));
  final file = File('${folder.path}/sample.dart');
  await file.writeAsString(program);
  return _dart([file.path]);
}

void sampleTests() => group('sample', () {
  test("the clients' README streams to the other device, in its ten lines", () async {
    final relay = await Relay.start();
    final desktop = Client(relay.url, 'ada', Device.desktop);
    await desktop.online();
    final readme = await File.fromUri(_package.resolve('../README.md')).readAsString();
    // The page's other Dart sample is of a client without this library, and needs packages that are not here.
    final samples = RegExp(r'```dart\n(.*?)```', dotAll: true).allMatches(readme).map((match) => match.group(1)!);
    final sample = samples.singleWhere((sample) => sample.contains('package:duorelay/'));
    final getToken = "Future<String?> getToken({required bool forceRefresh}) async => '${idToken('ada')}';";
    final phone = await _runText('$sample\n$getToken'.replaceFirst('wss://relay.example.com/ws', '${relay.url}'));
    await eventually('the message: ${phone.log}', () => desktop.messages.isNotEmpty, limit: const Duration(seconds: 20));
    equal(desktop.messages, [{'hello': 'world'}]);
    await eventually('the frame', () => desktop.frames.isNotEmpty);
  });

  test("the project's README: its sample streams to the other device", () async {
    final relay = await Relay.start();
    final desktop = Client(relay.url, 'ada', Device.desktop);
    await desktop.online();
    final readme = await File.fromUri(_package.resolve('../../../README.md')).readAsString();
    final sample = RegExp(r'```dart\n(.*?)```', dotAll: true).allMatches(readme).single.group(1)!;
    final program = "import 'package:duorelay/duorelay.dart';\nvoid main() {\n$sample\n}\n$_flutter"
        .replaceFirst('wss://relay.example.com/ws', '${relay.url}')
        .replaceFirst('TOKEN', idToken('ada'));
    final phone = await _runText(program);
    await eventually('the frame: ${phone.log}', () => desktop.frames.isNotEmpty, limit: const Duration(seconds: 20));
    equal([desktop.frames.first.stream, ...desktop.frames.first.bytes], [1, 1, 2, 3]);
  });

  test("the README's sample streams to the other device", () async {
    final relay = await Relay.start();
    final desktop = Client(relay.url, 'ada', Device.desktop);
    await desktop.online();
    final readme = await File.fromUri(_package.resolve('README.md')).readAsString();
    final sample = RegExp(r'```dart\n(.*?)```', dotAll: true).allMatches(readme).single.group(1)!;
    final program = '$sample\n$_flutter'
        .replaceFirst('wss://relay.example.com/ws', '${relay.url}')
        .replaceFirst('TOKEN', idToken('ada'));
    final phone = await _runText(program);
    await eventually('the messages: ${phone.log}', () => desktop.messages.length == 2, limit: const Duration(seconds: 20));
    equal(desktop.messages, [{'hello': 'world'}, {'saved': true}]);
    await eventually('the frames', () => desktop.frames.length == 2);
    check(phone.log.contains('online: welcomed as the mobile'), phone.log);
  });

  test('example/main.dart streams to a desktop of the demo, and answers it', () async {
    final demo = await Relay.demo();
    final http = 'http://127.0.0.1:${demo.port}';
    final phone = await _dart([_package.resolve('example/main.dart').toFilePath(), http, 'ada']);
    final desktop = Client(demo.url, 'ada', Device.desktop, getToken: demo.demoToken);
    await eventually('frames: ${phone.log}', () => desktop.frames.length > 10, limit: const Duration(seconds: 20));
    await desktop.relay.sendAcked('hello');
    await eventually('the answer', () => desktop.messages.isNotEmpty);
    equal(desktop.messages, [{'echo': 'hello'}]);
    desktop.relay.send('bye');
    equal(await phone.ended, 0, 'the exit code: ${phone.log}');
  });
});
