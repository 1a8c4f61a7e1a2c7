import 'dart:convert';
import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'clock.dart';
import 'liveness.dart';
import 'pacing.dart';
import 'rate.dart';
import 'wire.dart';

/// Hears what happens on a [Link].
abstract interface class LinkOwner {
  /// Writes a message, a [String] or [Uint8List].
  void onWrite(Link link, Object message);

  /// Lets the socket go.
  void onEnd(Link link);

  /// The relay welcomed this link.
  void onWelcome(Link link, Welcome welcome);

  /// A frame arrived.
  void onFrame(Link link, int stream, Uint8List bytes);

  /// A control message arrived that is not the link's own affair.
  void onControl(Link link, String type, Map<String, Object?> message);

  /// The link ended by itself. Called once, and not after [Link.end].
  void onGone(Link link, int code, String reason);

  /// Something that waited may leave now.
  void onRoom(Link link);
}

/// One WebSocket from its handshake to its end.
final class Link {
  /// A link whose socket is about to open.
  Link(
    this.id,
    this._owner,
    Alarms alarms,
    this._timing, {
    required this.serial,
    required this.token,
    required this.tokenWasFresh,
  })  : _clock = alarms.clock,
        rate = Rate(alarms.clock),
        pacing = Pacing(alarms.clock.now) {
    _limit = alarms.create(() => fail(1006, 'no welcome in time'));
    liveness = Liveness(
      alarms,
      _timing,
      onPing: _onPing,
      onSilent: () => fail(1006, 'the relay went silent'),
    );
    _barrier = alarms.create(_passBarrier);
    _pressureEnd = alarms.create(() => onPressure(false));
    _report = alarms.create(_onReportDue);
    _limit.after(_timing.attempt.ms);
  }

  /// Its number among the links of this client.
  final int id;

  /// The attempt that opened it.
  final int serial;

  /// The token of its handshake.
  final String token;

  /// Whether a fresh token was asked for.
  final bool tokenWasFresh;

  final LinkOwner _owner;
  final Clock _clock;
  final Timing _timing;

  /// The relay's limits, as this link keeps them.
  final Rate rate;

  /// What the relay's reports say about the way up.
  Pacing pacing;

  /// Its signs of life.
  late final Liveness liveness;

  late final Alarm _limit;
  late final Alarm _barrier;
  late final Alarm _pressureEnd;
  late final Alarm _report;
  final Reporter _reporter = Reporter();
  int _askedPaceMs = slowPaceMs;

  /// The relay's first message.
  Welcome? welcome;

  /// The handshake is done.
  bool opened = false;

  /// The socket takes bytes now, rather than keeping them.
  bool writable = true;

  /// The new holder of the slot, once the relay has named it.
  Overwritten? overwritten;

  /// This client has opened another socket while this one was alive: an
  /// overwrite may be its own hand-over.
  bool hasSuccessor = false;

  /// The other device takes reliable messages too slowly.
  bool pressure = false;

  bool _ended = false;
  double _welcomedAt = double.infinity;

  // A pong says that all that was sent before its ping has been handed on.
  int _barrierPing = 0;
  void Function()? _onBarrier;

  // Reliable bytes: all that were sent, those before each ping that is out, and
  // those before the last pong.
  int _sent = 0;
  final Map<int, int> _sentBefore = {};
  int _pinged = 0;
  int _ponged = 0;

  /// Whether the relay understands [feature].
  bool has(String feature) => welcome?.features.contains(feature) ?? false;

  /// Lived long enough that earlier failures do not count any more.
  bool get isStable => _clock.now - _welcomedAt >= _timing.stable.ms;

  // ---- Writing --------------------------------------------------------------

  /// Writes a control message now: it never waits.
  void say(Map<String, Object?> message, {Kind kind = Kind.control}) =>
      _write(jsonEncode(message), kind);

  /// Milliseconds until a volatile frame of [size] may leave.
  double volatileWait(int size) => _wait(size, Kind.volatile);

  double _wait(int size, Kind kind) {
    final rateMs = rate.waitFor(size);
    if (!has('received')) return rateMs;
    final now = _clock.now;
    return _max(rateMs, pacing.mayLeaveAt(now, kind) - now);
  }

  /// The same for a reliable message. Infinity: a pong or the end of pressure
  /// makes room.
  double reliableWait(int size) {
    if (pressure) return double.infinity;
    if (_sent > _ponged && _sent - _ponged + size > _credit) {
      if (!liveness.isAsking) liveness.ping();
      return double.infinity;
    }
    return _wait(size, Kind.reliable);
  }

  /// Reliable bytes that may be on their way before a pong.
  double get _credit {
    final credit = (welcome?.limits.queueBytes ?? 0) / 4;
    return has('pressure') || credit < _credited ? credit : _credited;
  }

  /// The same where the relay reports no pressure.
  static const double _credited = 64 * 1024;

  /// Writes a frame.
  void sendVolatile(Uint8List message) {
    _write(message, Kind.volatile);
    liveness.onFrame();
  }

  /// Writes a reliable message.
  void sendReliable(Object message, int size) {
    _write(message, Kind.reliable, size: size);
    _askPace();
    _sent += size;
    if (_sent - _pinged >= _credit / 2) liveness.ping();
    liveness.onActive();
  }

  void _onPing(int id) {
    _sentBefore[id] = _pinged = _sent;
    say({'type': 'ping', 'id': '$id'}, kind: Kind.quiet);
  }

  void _write(Object message, Kind kind, {int? size, bool isFree = false}) {
    if (_ended || !opened) return;
    final bytes = size ??
        switch (message) {
          final String text => text.length,
          final Uint8List bytes => bytes.length,
          _ => 0,
        };
    if (!isFree) rate.spend(bytes);
    pacing.onSent(_clock.now, bytes, kind);
    _owner.onWrite(this, message);
  }

  /// The relay reports about the other device's reliable queue.
  void onPressure(bool high) {
    pressure = high;
    if (high) {
      _pressureEnd.after(_timing.pressure.ms);
    } else {
      _pressureEnd.clear();
      _owner.onRoom(this);
    }
  }

  void _onPong(Map<String, Object?> message) {
    final id = int.tryParse(field<String>(message, 'id') ?? '');
    final time = field<num>(message, 'time')?.toDouble();
    if (id == null || !liveness.onPong(id, time)) return;
    _ponged = _sentBefore[id] ?? _ponged;
    _sentBefore.removeWhere((ping, _) => ping <= id);
    if (id >= _barrierPing) _passBarrier();
    _owner
      ..onControl(this, 'pong', message)
      ..onRoom(this);
  }

  /// Calls [onPassed] once the relay has handed on all that was sent here, or
  /// after a time limit.
  void barrier(void Function() onPassed) {
    _onBarrier = onPassed;
    _barrier.after(_timing.barrier.ms);
    _barrierPing = liveness.ping();
  }

  void _passBarrier() {
    _barrier.clear();
    final onPassed = _onBarrier;
    _onBarrier = null;
    onPassed?.call();
  }

  // ---- Reports --------------------------------------------------------------

  /// A report is due, and free of the relay's rate.
  void _onReportDue() {
    final report = has('received') ? _reporter.report(_clock.now) : null;
    if (report == null) return;
    final message = {
      'type': 'received',
      'messages': report.messages,
      'time': report.time,
    };
    _write(jsonEncode(message), Kind.quiet, isFree: true);
  }

  void _setReport() {
    final now = _clock.now;
    final dueAt = _reporter.dueAt;
    if (dueAt <= now) {
      _onReportDue();
    } else if (dueAt.isFinite) {
      _report.within(dueAt - now);
    }
  }

  void _onReceived(Map<String, Object?> message) {
    final messages = integer(message, 'messages');
    final time = field<num>(message, 'time')?.toDouble();
    if (messages == null || time == null) return;
    pacing.onReport(_clock.now, messages, time);
    _askPace();
    _owner.onRoom(this);
  }

  /// The relay should report more often while the path is the limit.
  void _askPace() {
    if (!has('received') || pacing.paceMs == _askedPaceMs) return;
    _askedPaceMs = pacing.paceMs;
    final message = {'type': 'reports', 'every_ms': _askedPaceMs};
    say(message, kind: Kind.quiet);
  }

  // ---- Its life -------------------------------------------------------------

  /// The handshake is done, and the relay chose [chosen].
  void onOpened(String? chosen) {
    if (_ended) return;
    opened = true;
    // A classic server knows nothing of this protocol.
    if (chosen != protocol) fail(1002, 'the server does not speak $protocol');
  }

  /// A text message arrived.
  void onText(String text) {
    if (_ended) return;
    final message = parse(text);
    final type = message == null ? null : field<String>(message, 'type');
    _onHeard(makesDue: !_quietTypes.contains(type));
    if (message == null || type == null) return; // not a relay's
    switch (type) {
      case 'welcome':
        if (welcome != null) return;
        _onWelcome(parseWelcome(message));
      case 'pong':
        _onPong(message);
      case 'received':
        _onReceived(message);
      case 'reports':
        final everyMs = integer(message, 'every_ms');
        if (everyMs != null) _reporter.paceMs = everyMs.clamp(50, 1000);
      default:
        _owner.onControl(this, type, message);
    }
  }

  /// A binary message arrived.
  void onBinary(Uint8List message) {
    if (_ended) return;
    _onHeard(makesDue: true);
    if (message.isEmpty) return;
    liveness.onFrame();
    _owner.onFrame(this, message[0], Uint8List.sublistView(message, 1));
  }

  /// The socket takes bytes, or has as many as it takes.
  void onWritable(bool now) {
    writable = now;
    if (now && !_ended) _owner.onRoom(this);
  }

  void _onHeard({required bool makesDue}) {
    liveness.onHeard();
    _reporter.onRead(_clock.now, makesDue: makesDue);
    if (welcome != null) _setReport();
  }

  static const Set<String> _quietTypes = {
    'received',
    'reports',
    'ping',
    'pong',
  };

  void _onWelcome(Welcome message) {
    welcome = message;
    _limit.clear();
    _welcomedAt = _clock.now;
    rate.limit(
      messagesPerSecond: message.limits.messagesPerSecond,
      bytesPerSecond: message.limits.bytesPerSecond,
    );
    pacing = Pacing(_clock.now);
    _setReport();
    liveness.ping();
    _owner.onWelcome(this, message);
  }

  /// After a hand-over: a limited time to deliver the rest.
  void linger() {
    liveness.stop();
    _limit.after(_timing.linger.ms);
  }

  /// Lets the socket go without another word to the owner.
  void end() {
    if (_ended) return;
    for (final alarm in [_limit, _report, _barrier, _pressureEnd]) {
      alarm.clear();
    }
    liveness.stop();
    _ended = true;
    _owner.onEnd(this);
  }

  /// The socket ended, or is as good as ended.
  void fail(int code, String reason) {
    if (_ended) return;
    end();
    _owner.onGone(this, code, reason);
    // After the owner has decided: a move that waits here goes on without
    // this link, unless the owner has stopped.
    _passBarrier();
  }
}

double _max(double a, double b) => a > b ? a : b;
