import 'dart:collection';
import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'acks.dart';
import 'affinity.dart';
import 'after_close.dart';
import 'clock.dart';
import 'effects.dart';
import 'inbox.dart';
import 'link.dart';
import 'outbox.dart';
import 'sender.dart';
import 'tokens.dart';
import 'wire.dart';

/// Why a handshake came to nothing.
final class HandshakeFailure {
  /// An answer over HTTP. A [code] says that it is the relay's.
  const HandshakeFailure({
    required this.status,
    this.code = '',
    this.detail = '',
    this.retryAfterMs,
    this.attempt,
  });

  /// No answer: the network broke.
  const HandshakeFailure.network(this.detail)
      : status = 0,
        code = '',
        retryAfterMs = null,
        attempt = null;

  /// The HTTP status; 0 without an answer.
  final int status;

  /// The relay's stable code.
  final String code;

  /// The same in words.
  final String detail;

  /// The relay's `Retry-After`.
  final double? retryAfterMs;

  /// With `superseded`: the attempt that holds the slot.
  final int? attempt;
}

/// A connection that outlives its sockets: the rules, and nothing else. It
/// has no clock, network or randomness of its own. Each call may add to
/// [effects], which the outside then carries out in order.
final class RelayCore implements LinkOwner {
  /// A core that does nothing before [start].
  RelayCore({
    required this.url,
    required this.device,
    required int queueBytes,
    required String start,
    required Timing timing,
    required Clock clock,
    required double Function() random,
  })  : _timing = timing,
        _clock = clock,
        _random = random,
        alarms = Alarms(clock) {
    _retry = alarms.create(_connect);
    _refresh = alarms.create(_refreshNow);
    _session = alarms.create(() => onSession(
          _serial,
          const HandshakeFailure.network('no answer in time'),
        ));
    acks = Acks(alarms, start, (id, error) => _do(SettleAck(id, error)));
    sender = Sender(alarms, clock, queueBytes, acks, _error)..onTime = _flush;
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

  /// Sends that await their acknowledgement.
  late final Acks acks;

  /// What waits to be sent.
  late final Sender sender;

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
  int _withoutWelcome = 0;
  int _blocked = 0;
  int _lastAttempt = 0;
  bool _forceRefresh = false;
  bool _sessionTokenWasFresh = false;
  bool _retryIsOrdered = false;
  bool _atBarrier = false; // a replacement waits for the current link's barrier
  bool _suspended = false;
  double _attemptedAt = double.negativeInfinity;
  double _takenBackAt = double.negativeInfinity;

  // Tokens.
  late final Alarm _refresh;
  int _lastRequest = 0;
  TokenRequest? _connectRequest;
  TokenRequest? _refreshRequest;
  double _refreshedAt = double.negativeInfinity;
  String? _user;

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

  /// Tries now: after it stopped, or instead of waiting.
  void connect() {
    if (_state == RelayState.closed) {
      throw const SendException('not_connected', 'this relay was closed');
    }
    if (_state == RelayState.online || _state == RelayState.connecting) return;
    _failures = 0;
    _connect();
  }

  /// Ends the connection for good.
  void close() {
    if (_state == RelayState.closed) return;
    _stop(const RelayStatus(RelayState.closed, 'the app closed it'));
    acks.failAll('closed', 'the app closed the connection');
  }

  /// Nobody is signed in any more.
  void signedOut() {
    if (!_state.isActive) return;
    _stop(const RelayStatus(RelayState.signedOut, 'nobody is signed in'));
    _user = null;
  }

  /// The network came back or changed: no reason to wait, and every reason to
  /// doubt the link.
  void wake() {
    if (_suspended || !_state.isActive) return;
    _failures = 0;
    final current = _current;
    if (current != null) {
      current.probe(_timing.busySilence.ms);
    } else if (_retry.isSet && !_retryIsOrdered) {
      // At most one attempt a second, however often the network changes.
      _retryIn(_attemptedAt + 1000 - _clock.now, 'the network is back');
    }
  }

  /// The app goes to the background, where a socket would freeze.
  void suspend() {
    if (!_state.isActive || _suspended) return;
    _serial += 1;
    _suspended = true;
    _endLinks();
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
    RangeError.checkValueInInterval(stream, 0, 0xff, 'stream');
    final message = Sender.encodeFrame(stream, bytes);
    sender.checkSize(message.length);
    if (stream >= firstReliableStream) {
      _queue(Waiting(message, message.length));
      return true;
    }
    if (_current == null) return false;
    sender.outbox.putVolatile(stream, message);
    _flush();
    return true;
  }

  /// Sends a JSON value.
  void send(Object? data, {String? id}) =>
      _queue(Sender.encodeSend(data, id: id));

  /// Sends a JSON value and awaits its acknowledgement under the id that this
  /// returns.
  String sendAcked(Object? data, double? limitMs) {
    final id = acks.open(limitMs ?? _timing.ack.ms);
    try {
      _queue(Sender.encodeSend(data, id: id, ack: true));
    } on SendException catch (error) {
      acks.fail(id, error.code, error.message);
    }
    return id;
  }

  void _queue(Waiting waiting) {
    sender.checkSize(waiting.size);
    if (!_state.isActive) {
      throw SendException('not_connected', 'the connection is ${_state.name}');
    }
    sender.outbox.putReliable(waiting);
    _flush();
  }

  /// The app has got a message whose sender waits for an acknowledgement.
  void onDelivered(String id) => _current?.say({'type': 'ack', 'id': id});

  // ---- Connecting -----------------------------------------------------------

  void _connect() {
    _retry.clear();
    _session.clear();
    _suspended = false;
    _attemptedAt = _clock.now;
    final serial = ++_serial;
    if (_current == null) {
      const status = RelayStatus(RelayState.connecting, 'an attempt is made');
      _setStatus(status);
    }
    final forceRefresh = _forceRefresh;
    _connectRequest?.cancel();
    _connectRequest = _askToken(
      forceRefresh: forceRefresh,
      onToken: (token) => _onConnectToken(serial, token, forceRefresh),
      onFailure: (detail) {
        _error('token_unavailable', detail, null);
        _backOff('there is no token: $detail', 'token_unavailable');
      },
    );
  }

  void _onConnectToken(int serial, String? token, bool wasFresh) {
    if (token == null) return _nobody();
    if (!_isHeaderText(token)) {
      final code = token.isEmpty ? 'missing_token' : 'malformed_token';
      final failure = HandshakeFailure(
        status: 0,
        code: code,
        detail: 'getToken gave no token that a header can hold',
      );
      return _onRefusal(failure, tokenWasFresh: wasFresh);
    }
    _onUser(userOf(token));
    final current = _current;
    if (current == null) return _open(serial, token, wasFresh);
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

  bool _isAnother(String? user) =>
      _user != null && user != null && user != _user;

  /// [user] is signed in. What another user left must not reach this one.
  void _onUser(String? user) {
    if (_isAnother(user)) {
      _endLinks();
      sender.drop();
      const status = RelayStatus(
        RelayState.connecting,
        'another user is signed in',
        code: 'another_user',
      );
      _setStatus(status);
    }
    _user = user ?? _user;
  }

  void _nobody() {
    const status = RelayStatus(
      RelayState.signedOut,
      'nobody is signed in',
      code: 'signed_out',
    );
    if (_user != null) {
      _user = null;
      return _stop(status);
    }
    // What was sent before anybody signed in waits for the first user.
    _serial += 1;
    _endLinks();
    _setStatus(status);
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
    _current?.successorTried = true;
    _lastAttempt =
        _clock.unixMs > _lastAttempt ? _clock.unixMs : _lastAttempt + 1;
    _do(OpenSocket(link.id, _socketUrl(), token, _lastAttempt));
    _withoutWelcome += 1;
  }

  Uri _socketUrl() => url.replace(queryParameters: {
        ...url.queryParametersAll,
        if (device != null) 'device': device!.name,
        'client': client,
        'attempt': '$_lastAttempt',
        // A full or leaving instance must be no trap.
        if (_user != null && _withoutWelcome < 2)
          'affinity': affinityOf(_user!),
      });

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
      if (failure.code == 'superseded') _onSuperseded(failure);
      _onRefusal(failure, tokenWasFresh: link.tokenWasFresh);
    } else if (failure.status == 0) {
      _backOff('the relay is out of reach: ${failure.detail}', 'network');
    } else {
      _askSession(link); // something else than a relay has answered
    }
    _flush(); // what the failed replacement held back may go on
  }

  /// Our numbers have fallen behind: the memory of them was lost, or the
  /// clock fell.
  void _onSuperseded(HandshakeFailure failure) {
    final holder = failure.attempt;
    if (holder != null && holder > _lastAttempt) _lastAttempt = holder;
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
      const detail = 'the relay answers over HTTP, and something on the way '
          'lets no WebSocket through';
      if (_blocked == 2) _error('upgrade_blocked', detail, null);
      _backOff(detail, 'upgrade_blocked');
    } else if (failure.code.isNotEmpty) {
      if (failure.code == 'superseded') _onSuperseded(failure);
      _onRefusal(failure, tokenWasFresh: _sessionTokenWasFresh);
    } else {
      _backOff('the relay does not answer', 'network');
    }
  }

  void _onRefusal(HandshakeFailure failure, {required bool tokenWasFresh}) {
    final code = failure.code;
    final curable = tokenRefusals.contains(code) && !tokenWasFresh;
    // With a connection that still works there is nothing to stop: only its
    // replacement failed.
    final isFinal = _current == null &&
        !curable &&
        (tokenRefusals.contains(code) || finalRefusals.contains(code));
    final detail = failure.detail;
    final retryAfterMs = failure.retryAfterMs;
    if (isFinal) {
      _stop(RelayStatus(RelayState.refused, detail, code: code));
    }
    _do(EmitEvent(Refused(
      status: failure.status,
      code: code,
      detail: detail,
      isFinal: isFinal,
      retryAfter: retryAfterMs == null
          ? null
          : Duration(milliseconds: retryAfterMs.round()),
    )));
    if (isFinal) return;
    if (curable) {
      _forceRefresh = true;
      return _retryIn(0, 'the relay wants a fresh token', code: code);
    }
    if (retryAfterMs == null) return _backOff(detail, code);
    final max = _timing.retryAfterMax.ms;
    final ordered = retryAfterMs < max ? retryAfterMs : max;
    _retryIn(ordered + _fullJitter(), detail, code: code, ordered: true);
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
      _refresh.clear();
      _refreshRequest?.cancel();
      _inbox.endOld();
    } else {
      _next = null;
    }

    var after = AfterClose.of(code);
    final by = link.overwritten;
    final overwritten = after == AfterClose.overwritten;
    final handedOver =
        overwritten && link.successorTried && by?.sameClient != false;
    // To our own next socket, which is on its way or has failed.
    if (handedOver) after = AfterClose.backOff;
    if (overwritten && !handedOver && (by?.sameClient ?? false)) {
      after = _afterOwnOverwrite(after);
    }
    if (after == AfterClose.freshToken) _forceRefresh = true;
    final stops = after == AfterClose.overwritten ||
        after == AfterClose.refused && _current == null;
    final trying = wasCurrent && !_retry.isSet && _serial > link.serial;
    // Still online: the next socket's welcome is a moment away.
    if (handedOver && trying) return;

    final why = reason.isEmpty ? closeReason(code) : reason;
    if (stops && after == AfterClose.overwritten) {
      _stop(RelayStatus(
        RelayState.overwritten,
        closeReason(4001),
        code: 'overwritten',
      ));
      _do(EmitEvent(by ?? const Overwritten()));
    } else if (stops) {
      final name = code == 1002 && link.welcome == null
          ? 'unsupported_protocol'
          : closeName(code);
      _stop(RelayStatus(RelayState.refused, why, code: name));
      final event = Refused(status: 0, code: name, detail: why, isFinal: true);
      _do(EmitEvent(event));
    } else if (trying) {
      final name = closeName(code);
      _setStatus(RelayStatus(RelayState.connecting, why, code: name));
    } else if (!link.opened) {
      _askSession(link);
    } else if (after == AfterClose.longWait) {
      final ms = _timing.policy.ms * (1 + _random());
      _retryIn(ms, why, code: closeName(code), ordered: true);
    } else if (after != AfterClose.backOff && _failures == 0) {
      _failures = 1; // when it happens again soon, it is a loop: then back-off
      final ms = _random() * _timing.restart.ms;
      _retryIn(ms, why, code: closeName(code));
    } else {
      _backOff(why, closeName(code));
    }
    if (wasCurrent) {
      _do(EmitEvent(LinkClosed(code, why, willReconnect: !stops)));
    }
    _flush(); // what the failed replacement held back may go on
  }

  /// This client took over from itself, and knows of no live connection of its
  /// own: a handshake that was given up arrived late. Once, it comes back; a
  /// second time another process uses its name.
  AfterClose _afterOwnOverwrite(AfterClose after) {
    final again = _clock.now - _takenBackAt < 600000;
    _takenBackAt = _clock.now;
    return again ? after : AfterClose.backOff;
  }

  double _fullJitter() {
    final grown = _timing.backoff.ms * (1 << (_failures < 20 ? _failures : 20));
    final max = _timing.backoffMax.ms;
    _failures += 1;
    return _random() * (grown < max ? grown : max);
  }

  void _backOff(String reason, String code) =>
      _retryIn(_fullJitter(), reason, code: code);

  /// [ordered]: the relay named the time; a network that comes back does not
  /// shorten it.
  void _retryIn(
    double ms,
    String reason, {
    String code = '',
    bool ordered = false,
  }) {
    _serial += 1; // what is still awaited for an earlier attempt is void
    _connectRequest?.cancel();
    _atBarrier = false;
    _retryIsOrdered = ordered;
    _retry.after(ms);
    if (_current != null) return;
    _setStatus(RelayStatus(
      RelayState.waiting,
      reason,
      code: code,
      retryIn: Duration(microseconds: ((ms < 0 ? 0 : ms) * 1000).round()),
    ));
  }

  void _endLinks() {
    _retry.clear();
    _session.clear();
    _refresh.clear();
    _connectRequest?.cancel();
    _refreshRequest?.cancel();
    _atBarrier = false;
    _inbox.endOld();
    _next?.end();
    _current?.end();
    _next = null;
    _current = null;
    sender.outbox.dropVolatile();
  }

  void _stop(RelayStatus status) {
    _serial += 1;
    _suspended = false;
    _forceRefresh = false;
    _endLinks();
    sender.drop();
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
        final received = RelayMessage(
          from: parseDevice(message['from']),
          data: message['data'],
          text: field<String>(message, 'text'),
          id: field<String>(message, 'id'),
        );
        final ack = message['ack'] == true && received.id != null;
        _inbox.inOrder(link, () => _do(EmitMessage(received, ack: ack)));
      case 'overwritten':
        final by = field<Map<String, Object?>>(message, 'by') ?? const {};
        link.overwritten = Overwritten(
          connection: field<String>(by, 'connection'),
          generation: integer(by, 'generation'),
          sameClient: field<bool>(by, 'same_client'),
        );
        // What waited for this socket came before this message; close 4001
        // follows and says nothing new.
        link.fail(4001, '');
      case 'acked':
        final id = field<String>(message, 'id');
        if (id != null) acks.succeed(id);
      default:
        if (link == _current) _onCurrent(link, type, message);
    }
  }

  void _onCurrent(Link link, String type, Map<String, Object?> message) {
    switch (type) {
      case 'peer':
        link.onPressure(false);
        final device = parseDevice(message['device']);
        if (device == null) return;
        final slot = parsePeer(message, device);
        if (message['state'] == 'connected') {
          _setPeer(slot);
        } else if (peer?.connection == slot?.connection) {
          _setPeer(null);
        }
      case 'expiring':
        expiresAt = unixSeconds(message, 'expires_at');
        _refreshSoon();
        _do(EmitEvent(Expiring(expiresAt!)));
      case 'authenticated':
        expiresAt = unixSeconds(message, 'expires_at');
        _do(EmitEvent(Authenticated(expiresAt!)));
      case 'backplane':
        backplaneIsUp = message['state'] != 'down';
        _do(EmitEvent(BackplaneChanged(isUp: backplaneIsUp)));
      case 'reconnect':
        final inMs = integer(message, 'in_ms') ?? 0;
        final reason = field<String>(message, 'reason') ?? '';
        // A replacement that is already on its way is as good as one that
        // starts later.
        if (_next == null && !_atBarrier) {
          _failures = 0;
          _retryIn(inMs.toDouble(), 'the relay asks to move', ordered: true);
        }
        final after = Duration(milliseconds: inMs);
        _do(EmitEvent(ReconnectAsked(reason, after: after)));
      case 'pressure':
        final high = message['state'] == 'high';
        if (high != link.pressure) {
          _do(EmitEvent(PressureChanged(isHigh: high)));
        }
        link.onPressure(high);
      case 'error':
        _onError(
          field<String>(message, 'code') ?? '',
          field<String>(message, 'detail') ?? '',
          field<String>(message, 'id'),
        );
      case 'pong':
        final rtt = Duration(microseconds: (link.rttMs! * 1000).round());
        _do(EmitEvent(RttMeasured(rtt)));
    }
  }

  void _onError(String code, String detail, String? id) {
    if (acks.isOpen(id)) return acks.fail(id!, code, detail);
    _error(code, detail, id);
    if (code == 'wrong_user') {
      // The app signed another user in, and the token says so.
      _forceRefresh = true;
      _reconnectAsAnother();
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
    _refresh.clear();
    _refreshRequest?.cancel();
    _forceRefresh = false;
    expiresAt = welcome.expiresAt;
    final tenant = welcome.tenant;
    _user ??= tenant == null ? welcome.uid : '$tenant/${welcome.uid}';
    backplaneIsUp = true; // the relay says when it is not
    final device = welcome.device.name;
    _setStatus(RelayStatus(RelayState.online, 'welcomed as the $device'));
    _do(EmitEvent(Welcomed(welcome)));
    _setPeer(welcome.peer);
    link.probe(_timing.silence.ms);
    _flush();
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

  // ---- Tokens ---------------------------------------------------------------

  TokenRequest _askToken({
    required bool forceRefresh,
    required void Function(String? token) onToken,
    required void Function(String detail) onFailure,
  }) =>
      TokenRequest(
        ++_lastRequest,
        alarms: alarms,
        timing: _timing,
        call: (id) => _do(CallGetToken(id, forceRefresh: forceRefresh)),
        onToken: onToken,
        onFailure: onFailure,
      );

  TokenRequest? _request(int id) => switch (id) {
        _ when _connectRequest?.id == id => _connectRequest,
        _ when _refreshRequest?.id == id => _refreshRequest,
        _ => null,
      };

  /// A call of `getToken` has answered [request].
  void onToken(int request, String? token) => _request(request)?.answer(token);

  /// A call of `getToken` for [request] has failed.
  void onTokenFailed(int request, String detail) =>
      _request(request)?.fail(detail);

  void _refreshSoon() {
    // A provider may give tokens that live shorter than the relay's warning
    // time: then not again and again at once.
    final again = _clock.now - _refreshedAt < 30000;
    final left = expiresAt!.millisecondsSinceEpoch - _clock.unixMs.toDouble();
    _refresh.after(again ? (left / 2 > 5000 ? left / 2 : 5000) : 0);
  }

  void _refreshNow() {
    final link = _current;
    if (link == null) return;
    _refreshedAt = _clock.now;
    _refreshRequest?.cancel(); // one chain of refreshes, never two
    _refreshRequest = _askToken(
      forceRefresh: true,
      onToken: (token) {
        if (token == null) return _nobody();
        final user = userOf(token);
        if (_isAnother(user)) return _reconnectAsAnother();
        link.say({'type': 'auth', 'token': token});
      },
      onFailure: (detail) {
        _error('token_unavailable', detail, null);
        // Close code 4003 ends it.
        _refresh.after(5000 + _random() * 10000);
      },
    );
  }

  /// The token is of another user: this link ends at once.
  void _reconnectAsAnother() {
    _endLinks();
    sender.drop();
    _user = null;
    _connect();
  }

  // ---- Reporting ------------------------------------------------------------

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
