import 'dart:async';
import 'dart:io';
import 'dart:typed_data';

import 'core/core.dart';
import 'core/effects.dart';
import 'core/handshake.dart';
import 'environment.dart';
import 'events.dart';
import 'io/environment.dart';
import 'storage.dart';
import 'timing.dart';
import 'types.dart';

/// A connection to a duorelay relay that keeps itself alive.
///
/// It connects at once, and comes back by itself after a broken network. It
/// fetches a fresh token when the relay asks for one, and opens the next socket
/// before the last one ends. It stops where coming back would be wrong;
/// [connect] starts it again, and [close] ends it for good.
///
/// All streams are broadcast streams: listen before anything can arrive, right
/// after creating the relay.
final class DuoRelay {
  /// Connects to the relay at [url] (`wss`, `ws`, `https` or `http`), with the
  /// tokens of [getToken].
  ///
  /// [device] is the slot to take; the relay's default for an app is
  /// [Device.mobile]. [client] names this installation; without it, [storage]
  /// keeps a random name. [queueBytes] limits the reliable messages that may
  /// wait to be sent, beside a limit of 1000 messages. [httpClient] makes the
  /// client of one handshake, for a proxy or for own certificates. [onLog]
  /// receives a line for each event of the connection, and never a token or a
  /// payload. Tests of this package bring their own [environment].
  ///
  /// Throws an [ArgumentError] for a URL that no relay can have.
  DuoRelay(
    Uri url, {
    required GetToken getToken,
    Device? device,
    String? client,
    ClientStorage? storage,
    int queueBytes = 1 << 20,
    Timing timing = const Timing(),
    HttpClient Function()? httpClient,
    void Function(String line)? onLog,
    Environment? environment,
  })  : _environment = environment ?? IoEnvironment(httpClient ?? HttpClient.new),
        _getToken = getToken,
        _client = client,
        _storage = storage ?? MemoryClientStorage(),
        _onLog = onLog {
    if (client != null && !_clientForm.hasMatch(client)) {
      throw ArgumentError.value(client, 'client', 'must be $_clientWords');
    }
    _core = RelayCore(
      url: _socketUrl(url),
      device: device,
      queueBytes: queueBytes,
      unique: _environment.randomName(),
      timing: timing,
      clock: _environment.clock,
      random: _environment.random,
    );
    scheduleMicrotask(_start);
  }

  static final RegExp _clientForm = RegExp(r'^[A-Za-z0-9_-]{1,64}$');
  static const String _clientWords = '1 to 64 of A-Z a-z 0-9 - _';

  final Environment _environment;
  final GetToken _getToken;
  final String? _client;
  final ClientStorage _storage;
  final void Function(String line)? _onLog;
  late final RelayCore _core;

  // Synchronous: events reach the app in the order in which they happen, also
  // across streams. `_drain` adds them one after the other, so that a listener
  // that calls the relay does not meet a stream that is still busy.
  final _statuses = StreamController<RelayStatus>.broadcast(sync: true);
  final _peers = StreamController<Peer?>.broadcast(sync: true);
  final _frames = StreamController<Frame>.broadcast(sync: true);
  final _messages = StreamController<RelayMessage>.broadcast(sync: true);
  final _events = StreamController<RelayEvent>.broadcast(sync: true);

  final Map<int, RelaySocket?> _sockets = {};
  final Set<Future<void>> _goodbyes = {};
  final Map<String, Completer<void>> _acks = {};
  final List<Completer<void>> _drained = [];
  Timer? _timer;
  double _timerAt = double.infinity;
  bool _draining = false;
  Future<void>? _closed;

  static Uri _socketUrl(Uri url) {
    final scheme = switch (url.scheme) {
      'wss' || 'https' => 'wss',
      'ws' || 'http' => 'ws',
      _ => throw ArgumentError.value(url, 'url', 'must begin with wss://'),
    };
    if (url.host.isEmpty || url.hasFragment) {
      throw ArgumentError.value(url, 'url', 'must have a host and no fragment');
    }
    return url.replace(scheme: scheme, path: url.path.isEmpty ? '/' : null);
  }

  // ---- What is --------------------------------------------------------------

  /// What the connection does now, and why.
  RelayStatus get status => _core.view.status;

  /// What the connection does now.
  RelayState get state => _core.view.state;

  /// The relay's first message on the current socket; null without one.
  Welcome? get welcome => _core.current?.welcome;

  /// The other device; null while it is away or not known.
  Peer? get peer => _core.view.peer;

  /// When the current token ends.
  DateTime? get expiresAt => _core.view.expiresAt;

  /// Whether the relay has its way to other relays.
  bool get isBackplaneUp => _core.view.backplaneIsUp;

  /// The last round trip to the relay and back.
  Duration? get rtt => _core.rtt;

  /// How long messages take each way, as estimated.
  Delay get delay => _core.delay;

  /// Volatile frames that never left: a newer one replaced them, or the
  /// connection ended first.
  int get dropped => _core.sender.outbox.dropped;

  /// Bytes of reliable messages that wait to be sent.
  int get queued => _core.sender.outbox.bytes;

  /// The name of this installation; empty until it was read from storage.
  String get client => _core.client;

  // ---- What happens ---------------------------------------------------------

  /// Each change of [status].
  Stream<RelayStatus> get statuses => _statuses.stream;

  /// Each change of [peer].
  Stream<Peer?> get peers => _peers.stream;

  /// Binary frames from the other device.
  Stream<Frame> get frames => _frames.stream;

  /// JSON messages from the other device, and from the server. A message that
  /// was sent with an acknowledgement counts as delivered when it was handed to
  /// a listener.
  Stream<RelayMessage> get messages => _messages.stream;

  /// All else that happens.
  Stream<RelayEvent> get events => _events.stream;

  // ---- What the app does ----------------------------------------------------

  /// Sends [bytes] on [stream] to the other device.
  ///
  /// On streams 0x00 to 0x7F only the newest frame matters: one that waits is
  /// replaced by the next. The answer is false if there is no connection. On
  /// streams 0x80 to 0xFF each frame arrives in order, or an error says why
  /// not. It throws a [SendException] if the queue is full or the connection
  /// has stopped.
  bool sendFrame(int stream, List<int> bytes) =>
      _run(() => _core.frame(stream, bytes));

  /// Sends a JSON value to the other device, reliably and in order with the
  /// reliable frames. [id] comes back in a [RelayError] about it.
  ///
  /// Throws a [SendException] if the queue is full or the connection has
  /// stopped, and a `JsonUnsupportedObjectError` for what is no JSON.
  void send(Object? data, {String? id}) =>
      _run(() => _core.send(data, id: id));

  /// Sends a JSON value like [send]. The future completes when the other
  /// device's library has delivered it to a listener. It completes with a
  /// [SendException] where that will not happen, or where nothing is known
  /// after [timeout] (by default 10 s).
  ///
  /// An [id] must be unique over all clients and time; by default it is a
  /// random one.
  Future<void> sendAcked(Object? data, {String? id, Duration? timeout}) {
    final completer = Completer<void>();
    _run(() {
      final limitMs = timeout?.ms;
      final name = _core.sendAcked(data, id: id, limitMs: limitMs);
      _acks[name] = completer;
    });
    return completer.future;
  }

  /// Completes once at most half of the reliable queue is taken: a file goes
  /// out chunk by chunk. It completes with a [SendException] if the connection
  /// has stopped.
  Future<void> drained() {
    final completer = Completer<void>();
    _run(() => _drained.add(completer));
    return completer.future;
  }

  /// Tries now: after it stopped, or instead of waiting. Online, it looks at
  /// the token again: one of another user ends the connection, and the next
  /// one is that user's.
  void connect() => _run(_core.connect);

  /// Ends the connection because the user signed out. [connect] goes on, with
  /// the next user.
  void signedOut() => _run(_core.signedOut);

  /// The network came back or changed, as `connectivity_plus` reports it: the
  /// client doubts its socket, and waits for nothing.
  void networkChanged() => _run(_core.wake);

  /// The app goes to the background, where the system freezes sockets: ends
  /// this one, and keeps what waits to be sent.
  void background() => _run(_core.suspend);

  /// The app is in the foreground again.
  void resume() => _run(_core.resume);

  /// Ends the connection for good, and frees all that it holds.
  Future<void> close() => _closed ??= _close();

  Future<void> _close() async {
    _run(_core.close);
    await Future.wait([..._goodbyes]);
    for (final controller in [_statuses, _peers, _frames, _messages, _events]) {
      unawaited(controller.close());
    }
  }

  // ---- The core's outside ---------------------------------------------------

  Future<void> _start() async {
    ClientRecord? record;
    try {
      final read = _storage.read();
      record = read is Future<ClientRecord?>
          ? await read.timeout(const Duration(seconds: 2))
          : read;
    } on Object catch (error) {
      _onStorageFailed(error);
    }
    final known = record != null && _clientForm.hasMatch(record.client);
    final name = _client ?? (known ? record.client : null);
    _run(() => _core.start(
          name ?? _environment.randomName(),
          record != null && record.client == name ? record.attempt : 0,
        ));
  }

  T _run<T>(T Function() input) {
    try {
      return input();
    } finally {
      _drain();
    }
  }

  /// Carries out what the core decided, in order. A listener may call the
  /// relay meanwhile: what that adds comes at the end.
  void _drain() {
    if (_draining) return;
    _draining = true;
    final effects = _core.view.effects;
    while (effects.isNotEmpty) {
      _carryOut(effects.removeFirst());
    }
    _draining = false;
    if (_drained.isNotEmpty) _settleDrained();
    _setTimer();
  }

  /// One timer serves all deadlines. It is not moved back: when it rings too
  /// early, it is set anew.
  void _setTimer() {
    final next = _core.alarms.next ?? double.infinity;
    if (next >= _timerAt && next.isFinite) return;
    _timer?.cancel();
    _timerAt = next;
    if (next.isInfinite) return;
    final ms = next - _environment.clock.now;
    final after = Duration(microseconds: ms < 0 ? 0 : (ms * 1000).ceil());
    _timer = _environment.startTimer(after, () {
      _timerAt = double.infinity;
      _run(_core.alarms.ring);
    });
  }

  void _settleDrained() {
    final isActive = state.isActive;
    if (isActive && !_core.sender.outbox.isDrained) return;
    for (final completer in _drained) {
      if (isActive) {
        completer.complete();
      } else {
        final message = 'the connection is ${state.name}';
        completer.completeError(SendException('not_connected', message));
      }
    }
    _drained.clear();
  }

  void _carryOut(Effect effect) {
    switch (effect) {
      case CallGetToken():
        _callGetToken(effect);
      case OpenSocket():
        unawaited(_open(effect));
      case Write(:final link, :final message):
        _sockets[link]?.write(message);
      case CloseSocket(:final link):
        final goodbye = _sockets.remove(link)?.end();
        if (goodbye != null) {
          _goodbyes.add(goodbye);
          goodbye.whenComplete(() => _goodbyes.remove(goodbye));
        }
      case AskSession(:final serial, :final url, :final token):
        _log('the relay is asked why it refused');
        _environment.askSession(url, token).then(
              (answer) => _run(() => _core.onSession(serial, answer)),
            );
      case SettleAck(:final id, :final error):
        final completer = _acks.remove(id);
        if (error == null) {
          completer?.complete();
        } else {
          completer?.completeError(error, StackTrace.current);
        }
      case EmitStatus(:final status):
        _log('$status');
        _statuses.add(status);
      case EmitPeer(:final peer):
        _peers.add(peer);
      case EmitFrame(:final frame):
        _frames.add(frame);
      case EmitMessage(:final message, :final ack):
        final delivered = _messages.hasListener;
        _messages.add(message);
        if (ack && delivered) _core.onDelivered(message.id!);
      case EmitEvent(:final event):
        if (event is RelayError) _log('error $event');
        _events.add(event);
    }
  }

  Future<void> _callGetToken(CallGetToken call) async {
    final request = call.request;
    try {
      final token = await _getToken(forceRefresh: call.forceRefresh);
      _run(() => _core.onToken(request, token));
    } on Object catch (error) {
      _run(() => _core.onTokenFailed(request, '$error'));
    }
  }

  /// Stores the attempt before its socket opens: an app that starts anew must
  /// not use the number again.
  Future<void> _open(OpenSocket effect) async {
    _sockets[effect.link] = null;
    try {
      final stored = _storage.write(ClientRecord(_core.client, effect.attempt));
      // A storage that answers at once costs no turn of the event loop.
      if (stored is Future<void>) await stored.timeout(const Duration(seconds: 1));
    } on Object catch (error) {
      _onStorageFailed(error);
    }
    _openNow(effect);
  }

  void _openNow(OpenSocket effect) {
    final link = effect.link;
    if (!_sockets.containsKey(link)) return; // ended meanwhile
    final events = _LinkEvents(this, link);
    _sockets[link] = _environment.open(effect.url, effect.token, events);
  }

  void _onStorageFailed(Object error) =>
      _log('the storage of the client name fails: $error');

  void _log(String line) => _onLog?.call(line);
}

final class _LinkEvents implements SocketEvents {
  _LinkEvents(this._relay, this._link);

  final DuoRelay _relay;
  final int _link;

  RelayCore get _core => _relay._core;

  @override
  void onOpened(String? protocol) =>
      _relay._run(() => _core.onOpened(_link, protocol));

  @override
  void onFailed(HandshakeFailure failure) =>
      _relay._run(() => _core.onHandshakeFailed(_link, failure));

  @override
  void onText(String text) => _relay._run(() => _core.onText(_link, text));

  @override
  void onBinary(Uint8List bytes) =>
      _relay._run(() => _core.onBinary(_link, bytes));

  @override
  void onWritable(bool now) =>
      _relay._run(() => _core.onWritable(_link, now));

  @override
  void onClosed(int code, String reason) =>
      _relay._run(() => _core.onClosed(_link, code, reason));
}
