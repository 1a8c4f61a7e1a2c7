/// The table of scenarios that both client libraries share; its format is
/// described in tests/client/scenarios.md.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:io';
import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';
import 'package:duorelay/src/core/handshake.dart';

import 'runner.dart';
import 'scripted.dart';

typedef Json = Map<String, Object?>;

void scenarioTests() {
  final file = File.fromUri(Platform.script.resolve('../client/scenarios.json'));
  final table = jsonDecode(file.readAsStringSync()) as Json;
  group('scenario', () {
    for (final scenario in (table['scenarios'] as List).cast<Json>()) {
      test(scenario['name'] as String, () async {
        final play = _Play(table, scenario);
        for (final (number, step) in (scenario['steps'] as List).cast<Json>().indexed) {
          try {
            await play.step(step);
          } on Failure catch (failure) {
            fail('step ${number + 1}, ${jsonEncode(step)}: $failure');
          }
        }
      });
    }
  });
}

final class _Play {
  _Play(this.table, Json scenario) {
    final options = (scenario['options'] ?? const <String, Object?>{}) as Json;
    const known = {'queueBytes', 'device', 'client'};
    check(known.containsAll(options.keys), 'unknown options: ${options.keys}');
    final device = (options['device'] ?? table['device']) as String;
    final tokens = (scenario['tokens'] ?? const ['ada1']) as List;
    given = Given(
      world: World(
        startMs: table['clock'] as int,
        randomValue: (scenario['random'] as num?)?.toDouble() ?? 0.5,
      ),
      getToken: (call, _) =>
          _token(tokens[call <= tokens.length ? call - 1 : tokens.length - 1]),
      url: table['url'] as String,
      client: (options['client'] ?? table['client']) as String,
      device: Device.values.byName(device),
      queueBytes: (options['queueBytes'] as int?) ?? 1 << 20,
    );
  }

  final Json table;
  late final Given given;
  final Map<ScriptedSocket, int> _readTexts = {};
  final Map<ScriptedSocket, int> _readBytes = {};
  final Map<String, int> _readEvents = {};
  final Map<String, String> _answers = {};
  int _seenSockets = 0;
  int _seenQuestions = 0;

  World get world => given.world;
  DuoRelay get relay => given.relay;

  FutureOr<String?> _token(Object? name) => switch (name) {
    null => null,
    'hangs' => Completer<String?>().future,
    'fails' => throw StateError('offline'),
    _ => (table['tokens'] as Json)[name] as String,
  };

  Future<void> step(Json step) async {
    await world.settle();
    final on = step['on'] as int?;
    ScriptedSocket socket() => on == null ? given.socket : world.sockets[on - 1];
    final verb = step.keys.firstWhere((key) => key != 'on');
    final value = step[verb];
    switch (verb) {
      case 'welcome':
        socket().welcome({...table['welcome'] as Json, ...value as Json});
      case 'open':
        socket().events.onOpened(value as String);
      case 'say':
        socket().say(value as Json);
      case 'bytes':
        socket().bytes(unhex(value as String));
      case 'close':
        socket().close(value as int);
      case 'fail':
        // Something else than a relay has answered: the library asks the relay.
        socket().events.onFailed(const HandshakeFailure(status: 502));
      case 'session':
        world.answers.add(_answer(value as Json));
      case 'pass':
        await world.pass(value as num);
      case 'do':
        _do(value as String, step);
      case 'socket':
        equal(world.sockets.length, _seenSockets + 1, 'sockets');
        _seenSockets += 1;
        _request(given.socket.token, given.socket.url, value as Json);
      case 'no_socket':
        equal(world.sockets.length, _seenSockets, 'sockets');
      case 'asked':
        check(world.asked.length > _seenQuestions, 'nothing was asked');
        final (url, token) = world.asked[_seenQuestions];
        _seenQuestions += 1;
        _request(token, url, value as Json);
      case 'sent':
        _sent(socket(), value as Json);
      case 'sent_bytes':
        final sent = socket().frames;
        final read = _readBytes[socket()] ?? 0;
        check(sent.length > read, 'no further binary message was sent');
        equal(hex(sent[read]), value, 'bytes');
        _readBytes[socket()] = read + 1;
      case 'nothing_sent':
        equal(_texts(socket(), null), const <Object>[], 'texts');
        equal(socket().frames.skip(_readBytes[socket()] ?? 0).map(hex).toList(), const <Object>[], 'frames');
      case 'pong':
        check(socket().pong(), 'no ping is unanswered');
      case 'ended':
        check(socket().ended, 'the socket lives');
      case 'state':
        final name = relay.state == RelayState.signedOut ? 'signed_out' : relay.state.name;
        equal(name, value, 'state');
        if (step.containsKey('code')) equal(relay.status.code, step['code'], 'code');
      case 'event':
        final read = _readEvents[value as String] ?? 0;
        final events = given.events(value);
        check(events.length > read, 'no further event $value: $events');
        _readEvents[value] = read + 1;
        if (step.containsKey('with')) _matches(events[read], step['with'], value);
      case 'no_event':
        final events = given.events(value as String).skip(_readEvents[value] ?? 0);
        equal(events.toList(), const <Object>[], value);
      case 'resolved':
        equal(_answers[value], 'resolved', '$value');
      case 'rejected':
        equal(_answers[value], step.containsKey('code') ? step['code'] : _answers[value], '$value');
        check(_answers[value] != 'resolved' && _answers[value] != 'pending', '$value: ${_answers[value]}');
      case 'pending':
        equal(_answers[value], 'pending', '$value');
      case 'is':
        (value as Json).forEach(_is);
      default:
        fail('an unknown step');
    }
    await world.settle();
  }

  HandshakeFailure? _answer(Json answer) {
    final status = answer['status'] as int;
    if (status == 200) return null;
    final body = (answer['body'] ?? const <String, Object?>{}) as Json;
    final headers = {
      for (final MapEntry(:key, :value) in ((answer['headers'] ?? const <String, Object?>{}) as Json).entries)
        key.toLowerCase(): '$value',
    };
    final retryAfter = headers['retry-after'];
    return HandshakeFailure(
      status: status,
      code: body['code'] as String? ?? '',
      detail: body['detail'] as String? ?? '',
      attempt: body['attempt'] as int?,
      retryAfterMs: retryAfter == null ? null : double.parse(retryAfter) * 1000,
    );
  }

  void _do(String action, Json step) {
    void act() {
      switch (action) {
        case 'frame':
          relay.sendFrame(step['stream'] as int, unhex(step['bytes'] as String));
        case 'send' when step['ack'] == true:
          final name = step['as'] as String? ?? '';
          _answers[name] = 'pending';
          relay.sendAcked(step['data'], id: step['id'] as String?).then(
            (_) => _answers[name] = 'resolved',
            onError: (Object error) => _answers[name] = (error as SendException).code,
          );
        case 'send':
          relay.send(step['data'], id: step['id'] as String?);
        case 'connect':
          relay.connect();
        case 'close':
          unawaited(relay.close());
        case 'signed_out':
          relay.signedOut();
        case 'wake':
          relay.resume();
        default:
          fail('an unknown action');
      }
    }

    final expected = step['throws'];
    if (expected == null) return act();
    equal(throws<SendException>(act).code, expected, 'thrown');
  }

  void _request(String token, Uri url, Json expected) {
    final tokens = table['tokens'] as Json;
    if (expected.containsKey('token')) equal(token, tokens[expected['token']], 'token');
    final query = (expected['query'] ?? const <String, Object?>{}) as Json;
    query.forEach((name, value) {
      final actual = url.queryParameters[name];
      if (value == '*') return check(actual != null, '$name is absent');
      equal(actual, value, name);
    });
  }

  /// Texts that no step has read, with their places.
  List<(int, Json)> _texts(ScriptedSocket socket, String? type) => [
    for (final (place, text) in socket.sent.indexed)
      if (text is! Uint8List && place >= (_readTexts[socket] ?? 0))
        if (jsonDecode(text as String) case final Json message
            when message['type'] == type ||
                !const {'ping', 'received', 'reports'}.contains(message['type']))
          (place, message),
  ];

  void _sent(ScriptedSocket socket, Json expected) {
    final texts = _texts(socket, expected['type'] as String?);
    check(texts.isNotEmpty, 'no further text was sent: ${socket.sent}');
    final (place, message) = texts.first;
    _readTexts[socket] = place + 1;
    _matches(message, expected, 'sent');
  }

  void _is(String name, Object? expected) => equal(switch (name) {
    'dropped' => relay.dropped,
    'peer' => relay.peer?.connection,
    'backplane' => relay.isBackplaneUp ? 'up' : 'down',
    _ => fail('an unknown property: $name'),
  }, expected, name);

  /// Objects are compared by the fields that are expected.
  static void _matches(Object? actual, Object? expected, String what) {
    if (expected is Json && actual is Map) {
      expected.forEach((name, value) => _matches(actual[name], value, '$what.$name'));
    } else if (expected is List && actual is List && actual.length == expected.length) {
      for (final (place, value) in expected.indexed) {
        _matches(actual[place], value, '$what[$place]');
      }
    } else {
      equal(actual, expected, what);
    }
  }
}
