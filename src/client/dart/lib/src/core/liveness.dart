import '../timing.dart';
import 'clock.dart';
import 'delay.dart';

/// Signs of life of one connection: when to ping, and when the path counts as
/// dead. Anything that arrives is a sign.
final class Liveness {
  /// Nothing happens before the first [ping]. [onPing] sends one, and
  /// [onSilent] hears of a dead path.
  Liveness(
    Alarms alarms,
    this._timing, {
    required void Function(int id) onPing,
    required void Function() onSilent,
  })  : _clock = alarms.clock,
        _onPing = onPing,
        _onSilent = onSilent {
    _beat = alarms.create(_onBeat);
    _silence = alarms.create(_onSilence);
  }

  final Clock _clock;
  final Timing _timing;
  final void Function(int id) _onPing;
  final void Function() _onSilent;
  late final Alarm _beat;
  late final Alarm _silence;

  // Pings whose pong has not come. Pongs come in the order of their pings.
  final List<({int id, double at})> _open = [];
  int _last = 0;
  double _pingedAt = double.negativeInfinity;
  double _heardAt = 0;

  /// What was heard last when a late alarm was forgiven.
  double? _reprievedAt;
  double _activeSince = 0;
  double _activeUntil = double.negativeInfinity;
  double _frameAt = double.negativeInfinity;
  double _flowsUntil = double.negativeInfinity;
  bool _isStopped = false;

  /// The last round trip.
  double? rttMs;

  /// The delay each way.
  final WayDelay delay = WayDelay();

  /// Whether a pong is awaited.
  bool get isAsking => _open.isNotEmpty;

  /// Asks for a sign of life, and measures the round trip. The answer is the
  /// ping's number.
  int ping() {
    final id = ++_last;
    _pingedAt = _clock.now;
    _open.add((id: id, at: _pingedAt));
    _onPing(id);
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

  /// Messages flow: a dead path must be noticed soon.
  void onActive() {
    if (_last == 0 || _isStopped) return;
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
  void onFrame() {
    final now = _clock.now;
    if (now - _frameAt <= _timing.busyPing.ms) {
      _flowsUntil = now + _timing.busyPing.ms + _timing.busySilence.ms + 500;
    }
    _frameAt = now;
    onActive();
  }

  /// Something arrived.
  void onHeard() => _heardAt = _clock.now;

  /// The pong of ping [id] arrived; the relay sent it at [relayTime] of its own
  /// clock. False: nobody waits for it.
  bool onPong(int id, double? relayTime) {
    final index = _open.indexWhere((ping) => ping.id == id);
    if (index < 0) return false;
    final now = _clock.now;
    final at = _open[index].at;
    _open.removeRange(0, index + 1);
    rttMs = now - at;
    if (relayTime != null) delay.onPong(at, now, relayTime);
    return true;
  }

  /// No ping leaves any more, and silence is no news.
  void stop() {
    _isStopped = true;
    _beat.clear();
    _silence.clear();
  }

  bool get _isActive {
    final now = _clock.now;
    return now <= _activeUntil || now <= _flowsUntil;
  }

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
    if (_open.isEmpty) return double.infinity;
    final since = _later(_open.first.at, _heardAt);
    final quietMs = _timing.silence.ms;
    if (!_isActive) return since + quietMs;
    final busyMs = _later(_timing.busySilence.ms, 1000 + 2 * (rttMs ?? 0));
    return _later(since, _activeSince) + (busyMs < quietMs ? busyMs : quietMs);
  }

  void _onSilence() {
    final left = _silentAt() - _clock.now;
    if (left > 0) {
      if (left.isFinite) _silence.after(left);
    } else if (_silence.lateMs > 500 && _reprievedAt != _heardAt) {
      // The process was suspended: what arrived meanwhile must be read before
      // it is missed. Once: a system may run the timers of a process late each
      // time.
      _reprievedAt = _heardAt;
      _silence.after(1000);
    } else {
      _onSilent();
    }
  }
}

double _later(double a, double b) => a > b ? a : b;
