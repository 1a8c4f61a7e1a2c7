import 'dart:convert';
import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'clock.dart';
import 'delay.dart';
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
    _beat = alarms.create(_onBeat);
    _silence = alarms.create(_onSilence);
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

  late final Alarm _limit;
  late final Alarm _beat;
  late final Alarm _silence;
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

  /// The last round trip.
  double? rttMs;

  /// The delay each way.
  final WayDelay delay = WayDelay();

  bool _ended = false;
  bool _isLingering = false;
  double _welcomedAt = double.infinity;

  // Signs of life. A pong says that all that was sent before its ping has been
  // handed on.
  final List<_Ping> _pings = [];
  int _lastPing = 0;
  double _pingedAt = double.negativeInfinity;
  double _heardAt = 0;
  double _activeSince = 0;
  double _activeUntil = double.negativeInfinity;
  double _frameAt = double.negativeInfinity;
  double _flowsUntil = double.negativeInfinity;
  int _barrierPing = 0;
  void Function()? _onBarrier;

  // Reliable bytes: all that were sent, those before the last ping, and those
  // before the last pong.
  int _sent = 0;
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
      if (_pings.isEmpty) ping();
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
    _onFrame();
  }

  /// Writes a reliable message.
  void sendReliable(Object message, int size) {
    _write(message, Kind.reliable, size: size);
    _askPace();
    _sent += size;
    if (_sent - _pinged >= _credit / 2) ping();
    _onActive();
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

  // ---- Signs of life --------------------------------------------------------

  /// Asks for a sign of life, for the room of what was sent before it, and for
  /// the round trip.
  int ping() {
    final id = ++_lastPing;
    _pingedAt = _clock.now;
    _pinged = _sent;
    _pings.add(_Ping(id, _pingedAt, _sent));
    say({'type': 'ping', 'id': '$id'}, kind: Kind.quiet);
    // In a process that was suspended that time may be over. The alarm that is
    // set then allows for it.
    final left = _silentAt() - _clock.now;
    if (left > 0) _silence.within(left);
    _beat.after(_beatMs);
    return id;
  }

  /// The network changed, or the app woke up: asks at once, and does not wait
  /// long for the answer.
  void probe() {
    final now = _clock.now;
    if (!_isActive) _activeSince = now;
    _activeUntil = now + _timing.busySilence.ms;
    ping();
  }

  /// Frames flow: a dead path must be noticed soon.
  void _onActive() {
    if (welcome == null || _isLingering) return;
    final now = _clock.now;
    if (!_isActive) _activeSince = now;
    _activeUntil = now + _timing.busyPing.ms;
    final sincePing = now - _pingedAt;
    if (sincePing >= _timing.busyPing.ms) {
      ping();
    } else {
      _beat.within(_timing.busyPing.ms - sincePing);
    }
  }

  /// A frame left or arrived. After the second one of a flow, a pause is
  /// watched until it is known whether it is the peer's or the path's.
  void _onFrame() {
    final now = _clock.now;
    if (now - _frameAt <= _timing.busyPing.ms) {
      _flowsUntil = now + _timing.busyPing.ms + _timing.busySilence.ms + 500;
    }
    _frameAt = now;
    _onActive();
  }

  bool get _isActive => _clock.now <= _max(_activeUntil, _flowsUntil);

  double get _beatMs => (_isActive ? _timing.busyPing : _timing.ping).ms;

  void _onBeat() {
    final left = _pingedAt + _beatMs - _clock.now;
    if (left <= 0) {
      ping();
    } else {
      _beat.after(left);
    }
  }

  /// When the path counts as dead, if nothing comes until then. A slow path
  /// gets more time than it took last.
  double _silentAt() {
    if (_pings.isEmpty) return double.infinity;
    final since = _max(_pings.first.at, _heardAt);
    final quietMs = _timing.silence.ms;
    if (!_isActive) return since + quietMs;
    final busyMs = _max(_timing.busySilence.ms, 1000 + 2 * (rttMs ?? 0));
    return _max(since, _activeSince) + (busyMs < quietMs ? busyMs : quietMs);
  }

  void _onSilence() {
    final left = _silentAt() - _clock.now;
    if (left > 0) {
      if (left.isFinite) _silence.after(left);
    } else if (_silence.lateMs > 500) {
      // The process was suspended: what arrived meanwhile must be read before
      // it is missed.
      _silence.after(1000);
    } else {
      fail(1006, 'the relay went silent');
    }
  }

  void _onPong(Map<String, Object?> message) {
    final id = int.tryParse(field<String>(message, 'id') ?? '');
    final index = _pings.indexWhere((ping) => ping.id == id);
    if (id == null || index < 0) return;
    final ping = _pings[index];
    _pings.removeRange(0, index + 1);
    _ponged = ping.sent;
    rttMs = _clock.now - ping.at;
    final time = field<num>(message, 'time')?.toDouble();
    if (time != null) delay.onPong(ping.at, _clock.now, time);
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
    _barrierPing = ping();
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
    _onFrame();
    _owner.onFrame(this, message[0], Uint8List.sublistView(message, 1));
  }

  /// The socket takes bytes, or has as many as it takes.
  void onWritable(bool now) {
    writable = now;
    if (now && !_ended) _owner.onRoom(this);
  }

  void _onHeard({required bool makesDue}) {
    _heardAt = _clock.now;
    _reporter.onRead(_clock.now, makesDue: makesDue);
    if (welcome != null) _setReport();
  }

  static const Set<String> _quietTypes = {'received', 'reports', 'ping', 'pong'};

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
    ping();
    _owner.onWelcome(this, message);
  }

  /// After a hand-over: a limited time to deliver the rest.
  void linger() {
    _isLingering = true;
    _beat.clear();
    _silence.clear();
    _limit.after(_timing.linger.ms);
  }

  /// Lets the socket go without another word to the owner.
  void end() {
    if (_ended) return;
    final alarms = [
      ...[_limit, _beat, _silence, _report, _barrier, _pressureEnd],
    ];
    for (final alarm in alarms) {
      alarm.clear();
    }
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

final class _Ping {
  const _Ping(this.id, this.at, this.sent);

  final int id;
  final double at;

  /// Reliable bytes that were sent before it.
  final int sent;
}

double _max(double a, double b) => a > b ? a : b;
