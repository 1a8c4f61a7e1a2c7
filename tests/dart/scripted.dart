/// A world that the tests script: sockets, time, randomness, HTTP.
library;

import 'dart:async';
import 'dart:convert';
import 'dart:typed_data';

import 'package:duorelay/duorelay.dart';
import 'package:duorelay/src/core/clock.dart';
import 'package:duorelay/src/core/handshake.dart';
import 'package:duorelay/src/environment.dart';

import 'runner.dart';

/// Time stands still until [pass].
class World implements Environment, Clock {
  World({this.startMs = 1800000000000, this.randomValue = 0.5});

  final int startMs;
  double randomValue;
  final List<ScriptedSocket> sockets = [];
  final List<(Uri, String)> asked = [];
  final List<HandshakeFailure?> answers = [];
  final List<_ScriptedTimer> _timers = [];
  int _names = 0;

  @override
  double now = 0;

  @override
  int get unixMs => startMs + now.floor();

  @override
  Clock get clock => this;

  @override
  double random() => randomValue;

  @override
  String randomName() => 'random${++_names}';

  @override
  Timer startTimer(Duration after, void Function() ring) {
    final timer = _ScriptedTimer(now + after.inMicroseconds / 1000, ring);
    _timers.add(timer);
    return timer;
  }

  @override
  RelaySocket open(Uri url, String token, SocketEvents events) {
    final socket = ScriptedSocket(url, token, events);
    sockets.add(socket);
    return socket;
  }

  @override
  Future<HandshakeFailure?> askSession(Uri url, String token) async {
    asked.add((url, token));
    if (answers.isEmpty) return const HandshakeFailure.network('no answer');
    return answers.removeAt(0);
  }

  /// Lets [ms] pass, with all that happens meanwhile.
  Future<void> pass(num ms) async {
    final end = now + ms;
    await settle();
    while (true) {
      _timers.removeWhere((timer) => !timer.isActive);
      _timers.sort((a, b) => a.at.compareTo(b.at));
      if (_timers.isEmpty || _timers.first.at > end) break;
      final timer = _timers.removeAt(0);
      if (timer.at > now) now = timer.at;
      timer.ring();
      await settle();
    }
    now = end;
    await settle();
  }

  /// The process stands still for [ms]: timers ring late.
  void suspend(num ms) => now += ms;

  /// Lets all happen that needs no time.
  Future<void> settle() async {
    for (var turn = 0; turn < 3; turn += 1) {
      await Future<void>.delayed(Duration.zero);
    }
  }

  /// Timers that would still ring.
  int get timers => _timers.where((timer) => timer.isActive).length;
}

final class _ScriptedTimer implements Timer {
  _ScriptedTimer(this.at, this._ring);

  final double at;
  final void Function() _ring;

  @override
  bool isActive = true;

  @override
  int get tick => 0;

  @override
  void cancel() => isActive = false;

  void ring() {
    isActive = false;
    _ring();
  }
}

/// A socket with the test at its other end.
final class ScriptedSocket implements RelaySocket {
  ScriptedSocket(this.url, this.token, this.events);

  final Uri url;
  final String token;
  final SocketEvents events;
  final List<Object> sent = [];
  bool ended = false;

  @override
  void write(Object message) => sent.add(message);

  @override
  Future<void> end() async => ended = true;

  /// The relay sends a text message.
  void say(Map<String, Object?> message) {
    if (!ended) events.onText(jsonEncode(message));
  }

  /// The relay sends a binary message.
  void bytes(List<int> bytes) {
    if (!ended) events.onBinary(Uint8List.fromList(bytes));
  }

  /// The relay accepts the socket and welcomes it.
  void welcome([Map<String, Object?> more = const {}]) {
    events.onOpened('duorelay.v1');
    say({...usualWelcome, ...more});
  }

  /// The socket ends.
  void close([int code = 1006, String reason = '']) {
    if (!ended) events.onClosed(code, reason);
  }

  /// Messages of a type that the client sent.
  List<Map<String, Object?>> said(String type) => [
    for (final message in sent.whereType<String>())
      if (jsonDecode(message) case final Map<String, Object?> object
          when object['type'] == type)
        object,
  ];

  /// Binary messages that the client sent.
  List<List<int>> get frames => sent.whereType<Uint8List>().toList();

  final Set<Object?> _ponged = {};

  /// The relay answers the newest ping that it has not answered.
  bool pong() {
    final open = said('ping').where((ping) => !_ponged.contains(ping['id']));
    if (open.isEmpty) return false;
    final id = open.last['id'];
    _ponged.add(id);
    say({'type': 'pong', 'id': id, 'time': 0});
    return true;
  }
}

const Map<String, Object?> usualWelcome = {
  'type': 'welcome',
  'connection': 'c1',
  'device': 'mobile',
  'generation': 1,
  'uid': 'ada',
  'peer': null,
  'expires_at': 1800003600,
  'heartbeat_ms': 25000,
  'limits': {
    'message_bytes': 65536,
    'messages_per_second': 240,
    'bytes_per_second': 1048576,
    'queue_bytes': 1048576,
  },
  'features': ['received', 'ack', 'signal', 'pressure'],
  'instance': 'i1',
};

/// A client in a scripted world, with all that it reports.
final class Given {
  Given({
    World? world,
    FutureOr<String?> Function(int call, bool forceRefresh)? getToken,
    Device? device,
    String? client = 'tab',
    ClientStorage? storage,
    int queueBytes = 1 << 20,
    String url = 'wss://relay.test/ws',
  }) : world = world ?? World() {
    relay = DuoRelay(
      Uri.parse(url),
      environment: this.world,
      getToken: ({required forceRefresh}) {
        forced.add(forceRefresh);
        return getToken == null
            ? 'token${forced.length}'
            : getToken(forced.length, forceRefresh);
      },
      device: device,
      client: client,
      storage: storage,
      queueBytes: queueBytes,
      onLog: log.add,
    );
    relay.statuses.listen((status) => _on('state', [status.state.name]));
    relay.peers.listen((peer) => _on('peer', [_peer(peer)]));
    relay.frames.listen((frame) => _on('frame', [frame.stream, hex(frame.bytes)]));
    relay.messages.listen((message) => _on('message', [_message(message)]));
    relay.events.listen((event) => _onEvent(event));
    afterwards(relay.close);
  }

  final World world;
  late final DuoRelay relay;
  final List<bool> forced = [];
  final List<String> log = [];

  /// Events by their names in the shared table, each with its arguments.
  final Map<String, List<List<Object?>>> told = {};

  ScriptedSocket get socket => world.sockets.last;

  /// Waits until a socket is opened, and welcomes it.
  Future<ScriptedSocket> online([Map<String, Object?> more = const {}]) async {
    await world.settle();
    socket.welcome(more);
    return socket;
  }

  List<List<Object?>> events(String name) => told[name] ?? [];

  void _on(String name, List<Object?> arguments) => (told[name] ??= []).add(arguments);

  static Object? _peer(Peer? peer) => peer == null
      ? null
      : {'device': peer.device.name, 'connection': peer.connection, 'generation': peer.generation};

  static Object? _message(RelayMessage message) => {
    'from': message.from?.name ?? 'server',
    'data': message.data,
    'text': message.text,
    'id': message.id,
  };

  static int _seconds(DateTime time) => time.millisecondsSinceEpoch ~/ 1000;

  void _onEvent(RelayEvent event) => switch (event) {
    Welcomed(:final welcome) => _on('welcome', [
      {'connection': welcome.connection, 'uid': welcome.uid, 'instance': welcome.instance},
    ]),
    Overwritten(:final connection, :final generation, :final sameClient) => _on('overwritten', [
      connection == null
          ? null
          : {'connection': connection, 'generation': generation, 'same_client': sameClient},
    ]),
    Refused() => _on('refused', [
      {
        'status': event.status,
        'code': event.code,
        'detail': event.detail,
        'final': event.isFinal,
        'retryAfterMs': event.retryAfter?.inMilliseconds,
      },
    ]),
    RelayError(:final code, :final detail, :final id) => _on('error', [
      {'code': code, 'detail': detail, 'id': id},
    ]),
    LinkClosed(:final code, :final reason, :final willReconnect) => _on('close', [
      {'code': code, 'reason': reason, 'willReconnect': willReconnect},
    ]),
    Expiring(:final expiresAt) => _on('expiring', [
      {'expires_at': _seconds(expiresAt)},
    ]),
    Authenticated(:final expiresAt) => _on('authenticated', [
      {'expires_at': _seconds(expiresAt)},
    ]),
    BackplaneChanged(:final isUp) => _on('backplane', [isUp ? 'up' : 'down']),
    ReconnectAsked(:final reason, :final after) => _on('reconnect', [
      {'reason': reason, 'in_ms': after.inMilliseconds},
    ]),
    RttMeasured(:final rtt) => _on('rtt', [rtt.inMicroseconds / 1000]),
    DelayMeasured(:final delay) => _on('delay', [
      {'up': delay.up?.inMilliseconds, 'down': delay.down?.inMilliseconds},
    ]),
    PressureChanged(:final isHigh) => _on('pressure', [isHigh ? 'high' : 'low']),
  };
}

String hex(List<int> bytes) =>
    bytes.map((byte) => byte.toRadixString(16).padLeft(2, '0')).join();

List<int> unhex(String text) => [
  for (var i = 0; i < text.length; i += 2) int.parse(text.substring(i, i + 2), radix: 16),
];
