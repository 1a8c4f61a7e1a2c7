import 'dart:async';
import 'dart:io';
import 'dart:math';

import '../core/clock.dart';
import '../core/handshake.dart';
import '../environment.dart';
import 'socket.dart';

/// The real world, by `dart:io`.
final class IoEnvironment implements Environment {
  /// An environment whose connections come from [_newClient].
  IoEnvironment(this._newClient);

  final HttpClient Function() _newClient;
  final Random _random = Random();

  @override
  final Clock clock = _SystemClock();

  @override
  double random() => _random.nextDouble();

  @override
  String randomName() {
    final random = Random.secure();
    return List.generate(
      16,
      (_) => random.nextInt(256).toRadixString(16).padLeft(2, '0'),
    ).join();
  }

  @override
  Timer startTimer(Duration after, void Function() ring) => Timer(after, ring);

  @override
  RelaySocket open(Uri url, String token, SocketEvents events) =>
      IoSocket(_newClient(), url, token, events);

  @override
  Future<HandshakeFailure?> askSession(Uri url, String token) async {
    final client = _newClient();
    try {
      final request = await client.getUrl(url);
      request.followRedirects = false;
      request.headers.set(HttpHeaders.authorizationHeader, 'Bearer $token');
      final response = await request.close();
      if (response.statusCode == HttpStatus.ok) return null;
      return await readFailure(response);
    } on Object catch (error) {
      return HandshakeFailure.network('$error');
    } finally {
      client.close(force: true);
    }
  }
}

final class _SystemClock implements Clock {
  final Stopwatch _watch = Stopwatch()..start();

  @override
  double get now => _watch.elapsedMicroseconds / 1000;

  @override
  int get unixMs => DateTime.now().millisecondsSinceEpoch;
}
