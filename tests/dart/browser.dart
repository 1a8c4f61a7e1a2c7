/// A page in headless Chromium, by the few WebDriver calls that it takes
/// (https://www.w3.org/TR/webdriver2/).
library;

import 'dart:convert';
import 'dart:io';

import 'processes.dart';
import 'runner.dart';

final class Browser {
  Browser._(this._port);

  /// Starts chromedriver and Chromium, with a profile that ends with the test.
  static Future<Browser> start() async {
    final profile = await Directory.systemTemp.createTemp('duorelay-dart-');
    afterwards(() => _removed(profile));
    final driver = await Program.start('chromedriver', ['--port=0']);
    final announced = RegExp(r'started successfully on port (\d+)');
    await driver.ready(() => announced.hasMatch(driver.log));
    final browser = Browser._(int.parse(announced.firstMatch(driver.log)!.group(1)!));
    final session = await browser._call('POST', '/session', {
      'capabilities': {
        'alwaysMatch': {
          'browserName': 'chrome',
          'goog:chromeOptions': {
            'args': [
              ...['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'],
              ...['--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update'],
              ...['--disable-sync', '--user-data-dir=${profile.path}'],
            ],
          },
        },
      },
    });
    browser._session = '/session/${(session! as Map)['sessionId']}';
    afterwards(() => browser._call('DELETE', browser._session));
    return browser;
  }

  static Future<void> _removed(Directory profile) => eventually('Chromium to leave its profile', () async {
    try {
      await profile.delete(recursive: true);
      return true;
    } on FileSystemException {
      return false;
    }
  });

  final int _port;
  String _session = '';

  Future<void> open(Uri url) => _call('POST', '$_session/url', {'url': '$url'});

  /// Runs the body of an async function in the page; `args` is the list of
  /// arguments. The answer is its result.
  Future<Object?> run(String body, [List<Object?> arguments = const []]) async {
    final script =
        'const done = arguments[arguments.length - 1], args = [...arguments];'
        '(async () => { $body })().then((value) => done({ value }), (error) => done({ error: String(error) }));';
    final answer = await _call('POST', '$_session/execute/async', {'script': script, 'args': arguments}) as Map;
    if (answer['error'] != null) fail('in the page: ${answer['error']}');
    return answer['value'];
  }

  Future<Object?> _call(String method, String path, [Object? body]) async {
    final client = HttpClient();
    try {
      final request = await client.openUrl(method, Uri.parse('http://127.0.0.1:$_port$path'));
      if (body != null) {
        final bytes = utf8.encode(jsonEncode(body));
        request.headers.contentType = ContentType.json;
        request.contentLength = bytes.length;
        request.add(bytes);
      }
      final response = await request.close();
      final text = await utf8.decodeStream(response);
      final value = (jsonDecode(text) as Map)['value'];
      if (response.statusCode != 200) fail('$method $path: $value');
      return value;
    } finally {
      client.close(force: true);
    }
  }
}
