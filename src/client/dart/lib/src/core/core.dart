import 'dart:collection';
import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'affinity.dart';
import 'clock.dart';
import 'decide.dart';
import 'effects.dart';
import 'handshake.dart';
import 'inbox.dart';
import 'link.dart';
import 'sender.dart';
import 'tokens.dart';
import 'wire.dart';

/// A connection that outlives its sockets: the rules, and nothing else. It
/// has no clock, network or randomness of its own. Each call may add to
/// [effects], which the outside then carries out in order.
final class RelayCore implements LinkOwner {
  /// A core that does nothing before [start].
  RelayCore({
    required this.url,
    required this.device,
    required int queueBytes,
    required String unique,
    required Timing timing,
    required Clock clock,
    required double Function() random,
  })  : _timing = timing,
        _clock = clock,
        _random = random,
        alarms = Alarms(clock) {
    _retry = alarms.create(_connect);
    _session = alarms.create(() => onSession(
          _serial,
          const HandshakeFailure.network('no answer in time'),
        ));
    _tokens = Tokens(
      alarms,
      timing,
      random,
      call: (request, {required forceRefresh}) =>
          _do(CallGetToken(request, forceRefresh: forceRefresh)),
      onRefreshDue: _refresh,
    );
    sender = Sender(
      alarms,
      timing,
      queueBytes,
      unique,
      onTime: _flush,
      onSettled: (id, error) => _do(SettleAck(id, error)),
      onError: _error,
    );
  }

  /// The relay.
  final Uri url;

  /// The slot to take; null for the default.
  final Device? device;

  /// The name of this installation; empty before [start].
  String client = '';

  final Timing _timing;
  final Clock _clock;
  final double Function() _random;

  /// The deadlines of this core and of its links.
  final Alarms alarms;

  /// What is to be done, in order. The outside empties it.
  final Queue<Effect> effects = Queue();

  /// What waits to be sent.
  late final Sender sender;

  late final Tokens _tokens;

  /// What the connection does now, and why.
  RelayStatus status = const RelayStatus(RelayState.connecting, 'it starts');

  /// The other device.
  Peer? peer;

  /// When the token of the current link ends.
  DateTime? expiresAt;

  /// Whether the relay has its way to other relays.
  bool backplaneIsUp = true;

  // Links. `next` is being opened, `current` was welcomed, the inbox's `old` is
  // what `current` replaced.
  Link? _next;
  Link? _current;
  final Inbox _inbox = Inbox();
  final Map<int, Link> _links = {};
  int _lastLink = 0;

  // When to try next. Each attempt has a serial number: what an earlier one
  // still awaits is void.
  late final Alarm _retry;
  late final Alarm _session;
  int _serial = 0;
  int _failures = 0;
  int _withoutWelcome = 0; // attempts in a row
  int _blocked = 0; // handshakes in a row that failed though the relay agreed
  int _lastAttempt = 0; // the number that the relay gets
  TokenRequest? _request;
  TokenRequest? _refreshRequest;
  bool _forceRefresh = false;
  bool _sessionTokenWasFresh = false;
  bool _retryIsOrdered = false;
  bool _atBarrier = false; // a replacement waits for the current link's barrier
  bool _suspended = false;
  bool _checkLater = false; // the token on its way may be of an earlier user
  double _attemptedAt = double.negativeInfinity;
  double _takenBackAt = double.negativeInfinity;

  /// A call of `getToken` for [request] has answered.
  void onToken(int request, String? token) => _tokens.onToken(request, token);

  /// A call of `getToken` for [request] has failed.
  void onTokenFailed(int request, String detail) =>
      _tokens.onFailure(request, detail);

  /// The link that was welcomed last and lives.
  Link? get current => _current;

  RelayState get _state => status.state;

  // ---- What the app asks for ------------------------------------------------

  /// Connects for the first time, as [client] after its [lastAttempt].
  void start(String client, int lastAttempt) {
    this.client = client;
    _lastAttempt = lastAttempt;
    if (_state == RelayState.connecting) _connect();
  }

  /// Tries now. Online, it looks at the token again: one of another user ends
  /// the connection and opens that user's.
  void connect() {
    switch (_state) {
      case RelayState.closed:
        throw const SendException('not_connected', 'this relay was closed');
      case RelayState.connecting:
        _checkLater = true;
      case RelayState.online:
        _checkUser();
      case _ when client.isEmpty:
        _setConnecting(); // `start` is about to connect
      case _:
        _failures = 0;
        _connect();
    }
  }

  /// Ends the connection for good.
  void close() {
    if (_state == RelayState.closed) return;
    _stop(const RelayStatus(RelayState.closed, 'the app closed it'));
  }

  /// Nobody is signed in any more.
  void signedOut() {
    if (_state == RelayState.closed) return;
    _tokens.user = null;
    _stop(const RelayStatus(
      RelayState.signedOut,
      'nobody is signed in',
      code: 'signed_out',
    ));
  }

  /// The network came back or changed: no reason to wait, and every reason to
  /// doubt the link.
  void wake() {
    if (_suspended) return;
    final since = _clock.now - _attemptedAt;
    final often = since < _timing.wake.ms;
    final current = _current;
    if (_state == RelayState.signedOut) {
      if (!often) _connect();
    } else if (current != null) {
      current.probe();
    } else if (_retry.isSet && !_retryIsOrdered) {
      // Earlier failures were another network's. At most one attempt a second,
      // however often the network changes.
      _failures = 0;
      _retryIn(_timing.wake.ms - since, 'wake', 'the network is back');
    } else if (_next != null && !_next!.opened && !often) {
      // It may hang on the path that was left. The relay drops it if it
      // arrives after its successor.
      _next!.end();
      _next = null;
      _connect();
    }
  }

  /// The app goes to the background, where a socket would freeze.
  void suspend() {
    if (!_state.isActive || _suspended) return;
    _endLinks();
    _suspended = true;
    _setStatus(const RelayStatus(
      RelayState.waiting,
      'the app is in the background',
      code: 'background',
    ));
  }

  /// The app is in the foreground.
  void resume() {
    if (!_suspended) return wake();
    _failures = 0;
    _connect();
  }

  /// Sends a frame. False: a volatile frame had no connection to go to.
  bool frame(int stream, List<int> bytes) {
    if (stream >= firstReliableStream) _checkActive();
    final isTaken = sender.frame(stream, bytes, hasLink: _current != null);
    _flush();
    return isTaken;
  }

  /// Sends a JSON value.
  void send(Object? data, {String? id}) {
    _checkActive();
    sender.send(data, id: id);
    _flush();
  }

  /// Sends a JSON value and awaits its acknowledgement under the id that this
  /// returns.
  String sendAcked(Object? data, {String? id, double? limitMs}) {
    _checkActive();
    final name = sender.sendAcked(data, id: id, limitMs: limitMs);
    _flush();
    return name;
  }

  void _checkActive() {
    if (_state.isActive) return;
    throw SendException('not_connected', 'the connection is ${_state.name}');
  }

  /// The app has got a message whose sender waits for an acknowledgement.
  void onDelivered(String id) {
    if (!(_current?.has('ack') ?? false)) return;
    sender.acknowledge(id);
    _flush();
  }

  // ---- Connecting -----------------------------------------------------------

  void _connect() {
    _retry.clear();
    _session.clear();
    _suspended = false;
    _attemptedAt = _clock.now;
    final serial = ++_serial;
    // Nobody is signed in until getToken says otherwise: no state that comes
    // and goes.
    if (_current == null && _state != RelayState.signedOut) _setConnecting();
    final wasFresh = _forceRefresh;
    _request?.cancel();
    _request = _tokens.ask(
      forceRefresh: wasFresh,
      onToken: (token) => _onConnectToken(serial, token, wasFresh),
      onFailure: (detail) {
        _error('token_unavailable', detail, null);
        _carryOut(_backOff('token_unavailable', detail));
      },
    );
  }

  void _setConnecting() => _setStatus(
        const RelayStatus(RelayState.connecting, 'an attempt is made'),
      );

  void _onConnectToken(int serial, String? token, bool wasFresh) {
    if (token == null) return signedOut();
    if (!_isHeaderText(token)) {
      final failure = HandshakeFailure(
        status: 0,
        code: token.isEmpty ? 'missing_token' : 'malformed_token',
        detail: 'getToken gave no token that a header can hold',
      );
      return _onRefusal(failure, tokenWasFresh: wasFresh);
    }
    if (_tokens.isOfAnother(token)) return _connectAnew(userOf(token));
    _tokens.user = userOf(token) ?? _tokens.user;
    final current = _current;
    if (current == null) {
      _setConnecting();
      return _open(serial, token, wasFresh);
    }
    // The relay drops what reaches the other device behind the new socket's
    // claim, and what was sent here last may still be on its way then, through
    // another instance: nothing reliable from now on, and no new socket before
    // the old one's relay has handed on the rest.
    _atBarrier = true;
    current.barrier(() {
      if (serial != _serial) return;
      _atBarrier = false;
      _open(serial, token, wasFresh);
    });
  }

  static bool _isHeaderText(String token) =>
      token.isNotEmpty &&
      token.codeUnits.every((unit) => unit > 0x20 && unit < 0x7f);

  /// Online, the app says that the token may be of another user.
  void _checkUser() {
    _checkLater = false;
    final link = _current;
    _request?.cancel();
    _request = _tokens.ask(
      forceRefresh: false,
      onToken: (token) {
        if (link != _current) return;
        if (token == null) return signedOut();
        if (_tokens.isOfAnother(token)) _connectAnew(userOf(token));
      },
      onFailure: (_) {},
    );
  }

  /// Nothing of one user's may reach another user's devices: not the link, and
  /// not what waits to be sent.
  void _connectAnew(String? user) {
    const reason = 'another user is signed in';
    final wasOnline = _current != null;
    _endLinks();
    sender.clear(reason);
    _tokens.user = user;
    _setConnecting();
    if (wasOnline) {
      _do(const EmitEvent(LinkClosed(1000, reason, willReconnect: true)));
    }
    _connect();
  }

  void _open(int serial, String token, bool wasFresh) {
    final link = Link(
      ++_lastLink,
      this,
      alarms,
      _timing,
      serial: serial,
      token: token,
      tokenWasFresh: wasFresh,
    );
    _links[link.id] = link;
    _next = link;
    _current?.hasSuccessor = true;
    _lastAttempt =
        _clock.unixMs > _lastAttempt ? _clock.unixMs : _lastAttempt + 1;
    _do(OpenSocket(link.id, _socketUrl(), token, _lastAttempt));
    _withoutWelcome += 1;
  }

  Uri _socketUrl() {
    final user = _tokens.user;
    return url.replace(queryParameters: {
      ...url.queryParametersAll,
      if (device != null) 'device': device!.name,
      'client': client,
      'attempt': '$_lastAttempt',
      // Twice without a welcome, the instance that a balancer chooses by it
      // may be full or leaving.
      if (user != null && _withoutWelcome < 2) 'affinity': affinityOf(user),
    });
  }

  // ---- The life of a socket -------------------------------------------------

  /// The handshake of [link] is done; the relay chose [protocol].
  void onOpened(int link, String? protocol) => _links[link]?.onOpened(protocol);

  /// [link] received text.
  void onText(int link, String text) => _links[link]?.onText(text);

  /// [link] received a binary message.
  void onBinary(int link, Uint8List bytes) => _links[link]?.onBinary(bytes);

  /// The socket of [link] takes bytes now, or does not.
  void onWritable(int link, bool now) => _links[link]?.onWritable(now);

  /// [link] was closed.
  void onClosed(int link, int code, String reason) =>
      _links[link]?.fail(code, reason);

  /// The handshake of [id] came to nothing.
  void onHandshakeFailed(int id, HandshakeFailure failure) {
    final link = _links[id];
    if (link == null || link != _next) return;
    link.end();
    _next = null;
    if (failure.code.isNotEmpty) {
      _onRefusal(failure, tokenWasFresh: link.tokenWasFresh);
    } else if (failure.status == 0) {
      _carryOut(_backOff(
        'network',
        'the relay is out of reach: ${failure.detail}',
      ));
    } else {
      _askSession(link); // something else than a relay has answered
    }
    _flush(); // what the failed replacement held back may go on
  }

  void _askSession(Link link) {
    final socket = _socketUrl();
    final path = socket.resolve('v1/session');
    final scheme = socket.scheme == 'wss' ? 'https' : 'http';
    final url = path.replace(scheme: scheme, query: socket.query);
    _session.after(_timing.session.ms);
    _sessionTokenWasFresh = link.tokenWasFresh;
    _do(AskSession(_serial, url, link.token));
  }

  /// The relay has answered [AskSession]: null is "it would let you in".
  void onSession(int serial, HandshakeFailure? failure) {
    if (serial != _serial) return;
    _session.clear();
    if (failure == null) {
      _blocked += 1;
      if (_blocked < 2) {
        return _carryOut(_backOff('handshake', 'the handshake failed'));
      }
      const code = 'upgrade_blocked';
      const detail = 'the relay answers over HTTP, but something between here '
          'and it does not let WebSockets through';
      _refused(const HandshakeFailure(status: 0, code: code, detail: detail));
      _carryOut(_backOff(code, detail));
    } else if (failure.code.isNotEmpty) {
      _onRefusal(failure, tokenWasFresh: _sessionTokenWasFresh);
    } else {
      _blocked = 0;
      _carryOut(_backOff('network', 'the relay cannot be reached'));
    }
  }

  void _onRefusal(HandshakeFailure failure, {required bool tokenWasFresh}) {
    _blocked = 0;
    final holder = failure.attempt;
    if (holder != null && holder > _lastAttempt) _lastAttempt = holder;
    final next = afterRefusal(
      failure,
      _situation(isTrying: false),
      _timing,
      tokenWasFresh: tokenWasFresh,
    );
    if (next is Stop) _stopFor(next);
    _refused(failure, isFinal: next is Stop);
    if (next is! Stop) _carryOut(next);
  }

  void _refused(HandshakeFailure failure, {bool isFinal = false}) {
    final retryAfterMs = failure.retryAfterMs?.round();
    _do(EmitEvent(Refused(
      status: failure.status,
      code: failure.code,
      detail: failure.detail,
      isFinal: isFinal,
      retryAfter:
          retryAfterMs == null ? null : Duration(milliseconds: retryAfterMs),
    )));
  }

  @override
  void onGone(Link link, int code, String reason) {
    if (link == _inbox.old) return _inbox.endOld();
    final wasCurrent = link == _current;
    if (!wasCurrent && link != _next) return;
    if (link.isStable) _failures = 0;
    if (wasCurrent) {
      _current = null;
      sender.outbox.dropVolatile();
      _tokens.stopRefresh();
      _inbox.endOld();
    } else {
      _next = null;
    }
    final event = Closed(
      code,
      reason,
      isOpened: link.opened,
      isWelcomed: link.welcome != null,
      by: link.overwritten,
      hasSuccessor: link.hasSuccessor,
      sinceTakenBackMs: _clock.now - _takenBackAt,
    );
    final isTrying = wasCurrent && !_retry.isSet && _serial > link.serial;
    final next = afterClose(event, _situation(isTrying: isTrying), _timing);
    // Still online: the next socket's welcome is a moment away.
    if (next is Nothing && code == 4001) return;
    switch (next) {
      case Stop(:final isOverwritten, :final code, :final reason):
        _stopFor(next);
        _do(EmitEvent(isOverwritten
            ? link.overwritten ?? const Overwritten()
            : Refused(status: 0, code: code, detail: reason, isFinal: true)));
      case Ask():
        _askSession(link);
      case _:
        _carryOut(next);
    }
    if (wasCurrent) {
      final words = reason.isEmpty ? closeWords(code) : reason;
      final willReconnect = next is! Stop;
      _do(EmitEvent(LinkClosed(code, words, willReconnect: willReconnect)));
    }
    _flush(); // what the failed replacement held back may go on
  }

  Situation _situation({required bool isTrying}) => Situation(
        isLive: _current != null,
        isTrying: isTrying,
        failures: _failures,
      );

  Retry _backOff(String code, String reason) =>
      backOff(_situation(isTrying: false), _timing, code, reason);

  void _carryOut(Next next) {
    if (next.forceRefresh) _forceRefresh = true;
    switch (next) {
      case Retry(:final least, :final most):
        _failures = next.failures;
        if (next.takesBack) _takenBackAt = _clock.now;
        final ms = least + _random() * (most - least);
        _retryIn(ms, next.code, next.reason, isOrdered: next.isOrdered);
      case Stop():
        _stopFor(next);
      case Nothing() || Ask():
        if (_current == null) _setConnecting();
    }
  }

  void _retryIn(
    double ms,
    String code,
    String reason, {
    bool isOrdered = false,
  }) {
    _serial += 1; // what is still awaited for an earlier attempt is void
    _request?.cancel();
    _session.clear();
    _atBarrier = false;
    _retryIsOrdered = isOrdered;
    _retry.after(ms);
    if (_current != null) return;
    final us = ms < 0 ? 0 : (ms * 1000).round();
    final retryIn = Duration(microseconds: us);
    _setStatus(
      RelayStatus(RelayState.waiting, reason, code: code, retryIn: retryIn),
    );
  }

  /// Ends all links, and voids what any attempt still awaits.
  void _endLinks() {
    _serial += 1;
    _retry.clear();
    _session.clear();
    _request?.cancel();
    _tokens.stopRefresh();
    _atBarrier = false;
    _inbox.endOld();
    _next?.end();
    _current?.end();
    _next = null;
    _current = null;
    sender.outbox.dropVolatile();
  }

  void _stopFor(Stop stop) => _stop(RelayStatus(
        stop.isOverwritten ? RelayState.overwritten : RelayState.refused,
        stop.reason,
        code: stop.code,
      ));

  void _stop(RelayStatus status) {
    _suspended = false;
    _forceRefresh = false;
    _checkLater = false;
    _endLinks();
    sender.clear(status.reason);
    _setStatus(status);
  }

  // ---- Receiving ------------------------------------------------------------

  @override
  void onFrame(Link link, int stream, Uint8List bytes) {
    void deliver() => _do(EmitFrame(Frame(stream, bytes)));
    if (stream >= firstReliableStream) return _inbox.inOrder(link, deliver);
    if (_inbox.isNewest(link, stream)) deliver();
  }

  @override
  void onControl(Link link, String type, Map<String, Object?> message) {
    switch (type) {
      case 'message':
        final received = parseMessage(message);
        final ack = message['ack'] == true && received.id != null;
        _inbox.inOrder(link, () => _do(EmitMessage(received, ack: ack)));
      case 'overwritten':
        link.overwritten = parseOverwritten(message);
        // What waited for this socket came before this message; close 4001
        // follows and says nothing new.
        link.fail(4001, '');
      case 'acked':
        sender.acks.succeed(field<String>(message, 'id'));
      case 'error':
        final error = parseError(message);
        sender.acks.fail(error.id, error.code, error.detail);
        if (link == _current) _onError(error);
      default:
        if (link == _current) _onCurrent(link, type, message);
    }
  }

  void _onCurrent(Link link, String type, Map<String, Object?> message) {
    switch (type) {
      case 'peer':
        final device = parseDevice(message['device']);
        if (device == null) return;
        final slot = parsePeer(message, device);
        if (message['state'] == 'connected') {
          _setPeer(slot);
        } else if (peer?.connection == slot?.connection) {
          _setPeer(null);
        }
        link.onPressure(false);
      case 'pressure':
        final isHigh = message['state'] == 'high';
        final isNew = isHigh != link.pressure;
        link.onPressure(isHigh);
        if (isNew) _do(EmitEvent(PressureChanged(isHigh: isHigh)));
      case 'expiring':
        final at = expiresAt = unixSeconds(message, 'expires_at');
        _tokens.refreshBefore(at);
        _do(EmitEvent(Expiring(at)));
      case 'authenticated':
        final at = expiresAt = unixSeconds(message, 'expires_at');
        _do(EmitEvent(Authenticated(at)));
      case 'backplane':
        backplaneIsUp = message['state'] != 'down';
        _do(EmitEvent(BackplaneChanged(isUp: backplaneIsUp)));
      case 'reconnect':
        final inMs = integer(message, 'in_ms') ?? 0;
        final reason = field<String>(message, 'reason') ?? '';
        // What is on its way already is as good as what starts later.
        if (_next == null && !_atBarrier) {
          _failures = 0;
          const words = 'the relay asks to move';
          _retryIn(inMs.toDouble(), 'restart', words, isOrdered: true);
        }
        final after = Duration(milliseconds: inMs);
        _do(EmitEvent(ReconnectAsked(reason, after: after)));
      case 'pong':
        _do(EmitEvent(RttMeasured(_us(link.rttMs)!)));
        _do(EmitEvent(DelayMeasured(delay)));
    }
  }

  void _onError(RelayError error) {
    _do(EmitEvent(error));
    if (error.code == 'wrong_user') {
      _connectAnew(null);
    } else if (tokenRefusals.contains(error.code)) {
      _tokens.refreshAgain();
    }
  }

  @override
  void onWelcome(Link link, Welcome welcome) {
    _inbox.endOld();
    if (link != _next) return;
    _inbox.onReplaced(_current);
    _current = link;
    _next = null;
    _withoutWelcome = 0;
    _blocked = 0;
    sender.messageBytes = welcome.limits.messageBytes;
    _tokens.stopRefresh();
    _forceRefresh = false;
    expiresAt = welcome.expiresAt;
    backplaneIsUp = true; // the relay says when it is not
    final slot = welcome.device.name;
    _setStatus(RelayStatus(RelayState.online, 'welcomed as the $slot'));
    _do(EmitEvent(Welcomed(welcome)));
    _setPeer(welcome.peer);
    _flush();
    if (_checkLater) _checkUser();
  }

  @override
  void onWrite(Link link, Object message) => _do(Write(link.id, message));

  @override
  void onEnd(Link link) {
    _links.remove(link.id);
    _do(CloseSocket(link.id));
  }

  @override
  void onRoom(Link link) {
    if (link == _current) _flush();
  }

  /// Sends what may leave. Nothing reliable leaves from the barrier before the
  /// next socket until its welcome: after the claim the relay drops what still
  /// comes on this one.
  void _flush() => sender.flush(_current, held: _next != null || _atBarrier);

  /// The session ends soon.
  void _refresh() {
    final link = _current;
    if (link == null) return;
    _refreshRequest?.cancel(); // one chain of refreshes, never two
    _refreshRequest = _tokens.ask(
      forceRefresh: true,
      onToken: (token) {
        if (link != _current) return;
        if (token == null) return signedOut();
        if (_tokens.isOfAnother(token)) return _connectAnew(userOf(token));
        link.say({'type': 'auth', 'token': token});
      },
      onFailure: (detail) {
        if (link != _current) return;
        _error('token_unavailable', detail, null);
        _tokens.refreshAgain();
      },
    );
  }

  // ---- Reporting ------------------------------------------------------------

  /// The delay each way.
  Delay get delay => Delay(
        up: _us(_current?.delay.upMs),
        down: _us(_current?.delay.downMs),
      );

  /// The last round trip.
  Duration? get rtt => _us(_current?.rttMs);

  static Duration? _us(double? ms) =>
      ms == null ? null : Duration(microseconds: (ms * 1000).round());

  void _do(Effect effect) => effects.add(effect);

  void _error(String code, String detail, String? id) =>
      _do(EmitEvent(RelayError(code, detail, id: id)));

  void _setPeer(Peer? now) {
    if (now?.connection == peer?.connection) return;
    peer = now;
    _do(EmitPeer(now));
  }

  void _setStatus(RelayStatus now) {
    if (_state == RelayState.closed) return;
    if (now.state == _state && _state != RelayState.waiting) return;
    status = now;
    if (_state != RelayState.online) _setPeer(null); // nobody reports it
    _do(EmitStatus(now));
  }
}
