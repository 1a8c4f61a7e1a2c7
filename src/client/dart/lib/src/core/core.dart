import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'affinity.dart';
import 'attempts.dart';
import 'clock.dart';
import 'decide.dart';
import 'effects.dart';
import 'handshake.dart';
import 'inbox.dart';
import 'link.dart';
import 'sender.dart';
import 'tokens.dart';
import 'view.dart';
import 'wire.dart';

part 'endings.dart';
part 'reception.dart';
part 'users.dart';

/// A connection that outlives its sockets: the rules, and nothing else. It
/// has no clock, network or randomness of its own. Each call may add to
/// [effects], which the outside then carries out in order.
final class RelayCore {
  /// A core that does nothing before [start].
  RelayCore({
    required Uri url,
    required Device? device,
    required int queueBytes,
    required String unique,
    required Timing timing,
    required Clock clock,
    required double Function() random,
  })  : _timing = timing,
        _clock = clock,
        _random = random,
        _attempts = Attempts(url, device, clock),
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
      onError: view.error,
    );
  }

  final Timing _timing;
  final Clock _clock;
  final double Function() _random;

  /// The deadlines of this core and of its links.
  final Alarms alarms;

  /// What the app sees, and what is to be done outside.
  final View view = View();

  /// The name of this installation; empty before [start].
  String get client => _attempts.client;

  /// What waits to be sent.
  late final Sender sender;

  late final Tokens _tokens;
  final Attempts _attempts;

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
  int _blocked = 0; // handshakes in a row that failed though the relay agreed
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

  RelayState get _state => view.state;

  // ---- What the app asks for ------------------------------------------------

  /// Connects for the first time, as [client] after its [lastAttempt].
  void start(String client, int lastAttempt) {
    _attempts.start(client, lastAttempt);
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
        view.setConnecting(); // `start` is about to connect
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
      current.liveness.probe();
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
    view.setStatus(const RelayStatus(
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
    if (_current == null && _state != RelayState.signedOut) {
      view.setConnecting();
    }
    final wasFresh = _forceRefresh;
    _request?.cancel();
    _request = _tokens.ask(
      forceRefresh: wasFresh,
      onToken: (token) => _onConnectToken(serial, token, wasFresh),
      onFailure: (detail) {
        view.error('token_unavailable', detail, null);
        _carryOut(_backOff('token_unavailable', detail));
      },
    );
  }

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
      view.setConnecting();
      return _open(serial, token, wasFresh);
    }
    // The relay drops what reaches the other device behind the new socket's
    // claim. What was sent here last may still be on its way then, through
    // another instance. So nothing reliable leaves from now on, and no socket
    // opens before the old one's relay has handed on the rest.
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

  void _open(int serial, String token, bool wasFresh) {
    final link = Link(
      ++_lastLink,
      _Reception(this),
      alarms,
      _timing,
      serial: serial,
      token: token,
      tokenWasFresh: wasFresh,
    );
    _links[link.id] = link;
    _next = link;
    _current?.hasSuccessor = true;
    final url = _attempts.next(_tokens.user);
    _do(OpenSocket(link.id, url, token, _attempts.last));
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

  /// Sends what may leave. Nothing reliable leaves from the barrier before the
  /// next socket until its welcome: after the claim the relay drops what still
  /// comes on this one.
  void _flush() => sender.flush(_current, held: _next != null || _atBarrier);

  // ---- Reporting ------------------------------------------------------------

  /// The delay each way.
  Delay get delay => Delay(
        up: _us(_current?.liveness.delay.upMs),
        down: _us(_current?.liveness.delay.downMs),
      );

  /// The last round trip.
  Duration? get rtt => _us(_current?.liveness.rttMs);

  static Duration? _us(double? ms) =>
      ms == null ? null : Duration(microseconds: (ms * 1000).round());

  void _do(Effect effect) => view.add(effect);
}
