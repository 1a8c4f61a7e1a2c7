import 'dart:convert';
import 'dart:typed_data';

import '../events.dart';
import '../timing.dart';
import '../types.dart';
import 'clock.dart';
import 'pacing.dart';
import 'rate.dart';
import 'reporter.dart';
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
        pacing = Pacing() {
    _limit = alarms.create(() => fail(1006, _limitReason));
    _beat = alarms.create(_onBeat);
    _busy = alarms.create(_onBusy);
    _silence = alarms.create(() => fail(1006, 'the relay went silent'));
    _barrier = alarms.create(_passBarrier);
    _pressureEnd = alarms.create(() => onPressure(false));
    _reporter = Reporter(alarms, _report);
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
  final Pacing pacing;

  late final Alarm _limit;
  late final Alarm _beat;
  late final Alarm _busy;
  late final Alarm _silence;
  late final Alarm _barrier;
  late final Alarm _pressureEnd;
  late final Reporter _reporter;

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
  bool successorTried = false;

  /// The other device takes reliable messages too slowly.
  bool pressure = false;

  /// The last round trip.
  double? rttMs;

  String _limitReason = 'no welcome in time';
  bool _ended = false;
  double _welcomedAt = double.infinity;
  double _heardAt = 0;
  double _trafficAt = double.negativeInfinity;

  // Pings are numbered. A pong says that all that was written before its ping
  // has been handed on.
  int _lastPing = 0;
  int _timedPing = 0;
  double _timedPingAt = 0;
  bool _pingOut = false;
  int _barrierPing = 0;
  void Function()? _onBarrier;

  // Reliable bytes that were written: all, those before each ping that is
  // out, and those that were handed on.
  int _written = 0;
  final Map<int, int> _writtenBefore = {};
  int _writtenBeforeLast = 0;
  int _handedOn = 0;

  /// Whether the relay understands [feature].
  bool has(String feature) => welcome?.features.contains(feature) ?? false;

  /// Lived long enough that earlier failures do not count any more.
  bool get isStable => _clock.now - _welcomedAt >= _timing.stable.ms;

  // ---- Writing --------------------------------------------------------------

  /// Writes a control message now: it never waits.
  void say(Map<String, Object?> message) =>
      _write(jsonEncode(message), reliable: false);

  /// Writes a frame or a reliable message.
  void write(Object message, {required int size, required bool reliable}) {
    _write(message, size: size, reliable: reliable);
    _onTraffic();
    if (!reliable) return;
    _written += size;
    if (_written - _writtenBeforeLast >= _reliableRoom / 2) _ping();
  }

  void _write(Object message, {int? size, required bool reliable}) {
    if (_ended || !opened) return;
    final bytes = size ?? (message as String).length;
    rate.spend(bytes);
    pacing.onSent(bytes, _clock.now, reliable: reliable);
    _owner.onWrite(this, message);
  }

  double get _reliableRoom => (welcome?.limits.queueBytes ?? 0) / 4;

  /// Whether a reliable message of [size] may leave, as far as the other
  /// device is concerned.
  bool takesReliable(int size) {
    if (pressure) return false;
    final onTheWay = _written - _handedOn;
    return onTheWay == 0 || onTheWay + size <= _reliableRoom;
  }

  int _ping() {
    _lastPing += 1;
    _writtenBefore[_lastPing] = _writtenBeforeLast = _written;
    say({'type': 'ping', 'id': '$_lastPing'});
    return _lastPing;
  }

  void _onPong(Map<String, Object?> message) {
    final id = int.tryParse(field<String>(message, 'id') ?? '');
    final handedOn = _writtenBefore[id];
    if (id == null || handedOn == null) return;
    _handedOn = handedOn;
    _writtenBefore.removeWhere((ping, _) => ping <= id);
    if (id >= _barrierPing) _passBarrier();
    if (id == _timedPing) {
      rttMs = _clock.now - _timedPingAt;
      _owner.onControl(this, 'pong', message);
    }
    _owner.onRoom(this);
  }

  /// The relay reports about the other device's reliable queue.
  void onPressure(bool high) {
    pressure = high;
    if (high) {
      _pressureEnd.after(3000);
    } else {
      _pressureEnd.clear();
      _owner.onRoom(this);
    }
  }

  // ---- Signs of life --------------------------------------------------------

  /// Asks for a sign of life within [ms]; anything that arrives is one.
  void probe(double ms) {
    _timedPingAt = _clock.now;
    _pingOut = true;
    _timedPing = _ping();
    _silence.within(ms);
  }

  void _onBeat() {
    probe(_timing.silence.ms);
    _beat.after(_timing.ping.ms);
  }

  void _onTraffic() {
    _trafficAt = _clock.now;
    if (!_busy.isSet && welcome != null) _busy.after(_timing.busyPing.ms);
  }

  /// Frames flow: silence says more than on a quiet connection.
  void _onBusy() {
    final busyMs = _timing.busyPing.ms + _timing.busySilence.ms;
    if (_clock.now - _trafficAt > busyMs) return;
    final quiet = _clock.now - _heardAt;
    if (quiet < _timing.busyPing.ms) {
      _busy.after(_timing.busyPing.ms - quiet);
      return;
    }
    // Where the relay does not report, a thin way up may hold a long queue,
    // and the pong comes behind it.
    var limit = 4.0 * (rttMs ?? 0);
    if (limit < _timing.busySilence.ms) limit = _timing.busySilence.ms;
    if (limit > _timing.silence.ms) limit = _timing.silence.ms;
    if (_pingOut) {
      _silence.within(limit);
    } else {
      probe(limit);
    }
    _busy.after(_timing.busyPing.ms);
  }

  /// Calls [onPassed] once the relay has handed on all that was sent here, or
  /// after a time limit.
  void barrier(void Function() onPassed) {
    _onBarrier = onPassed;
    _barrier.after(_timing.barrier.ms);
    _barrierPing = _ping();
  }

  void _passBarrier() {
    _barrier.clear();
    final onPassed = _onBarrier;
    _onBarrier = null;
    onPassed?.call();
  }

  void _report(int messages, double time) =>
      say({'type': 'received', 'messages': messages, 'time': time});

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
    final silent = Reporter.silent.contains(type);
    _onHeard(makesDue: !silent);
    if (message == null || type == null) return; // not a relay's
    if (!silent && type != 'welcome') _onTraffic();
    switch (type) {
      case 'welcome':
        if (welcome != null) return;
        _onWelcome(parseWelcome(message));
      case 'pong':
        _onPong(message);
      case 'received':
        final messages = integer(message, 'messages');
        final time = field<num>(message, 'time');
        if (messages == null || time == null) return;
        pacing.onReport(messages, time.toDouble(), _clock.now);
        final pace = pacing.takePace();
        if (pace != null) say({'type': 'reports', 'every_ms': pace});
        _owner.onRoom(this);
      case 'reports':
        final everyMs = integer(message, 'every_ms');
        if (everyMs != null) _reporter.onPace(everyMs);
      default:
        _owner.onControl(this, type, message);
    }
  }

  /// A binary message arrived.
  void onBinary(Uint8List message) {
    if (_ended) return;
    _onHeard(makesDue: true);
    if (message.isEmpty) return;
    _onTraffic();
    _owner.onFrame(this, message[0], Uint8List.sublistView(message, 1));
  }

  /// The socket takes bytes, or has as many as it takes.
  void onWritable(bool now) {
    writable = now;
    if (now && !_ended) _owner.onRoom(this);
  }

  void _onHeard({required bool makesDue}) {
    _heardAt = _clock.now;
    _silence.clear();
    _pingOut = false;
    _reporter.onMessage(makesDue: makesDue);
  }

  void _onWelcome(Welcome message) {
    welcome = message;
    _limit.clear();
    _welcomedAt = _clock.now;
    _beat.after(_timing.ping.ms);
    rate.limit(
      messagesPerSecond: message.limits.messagesPerSecond,
      bytesPerSecond: message.limits.bytesPerSecond,
    );
    if (has('received')) _reporter.start();
    _owner.onWelcome(this, message);
  }

  /// After a hand-over: a limited time to deliver the rest.
  void linger() {
    _beat.clear();
    _limitReason = '';
    _limit.after(_timing.linger.ms);
  }

  /// Lets the socket go without another word to the owner.
  void end() {
    if (_ended) return;
    final alarms = [_limit, _beat, _busy, _silence, _barrier, _pressureEnd];
    for (final alarm in alarms) {
      alarm.clear();
    }
    _reporter.stop();
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
