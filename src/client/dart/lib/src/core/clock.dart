/// The time, as the core asks for it.
abstract interface class Clock {
  /// Milliseconds of a clock that never goes back, from any origin.
  double get now;

  /// Milliseconds since 1970, which a user or a network may change.
  int get unixMs;
}

/// Deadlines of the core: the outside rings them, so that tests need no sleep.
final class Alarms {
  /// Alarms by [clock].
  Alarms(this.clock);

  /// The time by which they ring.
  final Clock clock;

  final Set<Alarm> _set = {};

  /// An alarm that is not set yet and calls [onRing] when it rings.
  Alarm create(void Function() onRing) => Alarm._(this, onRing);

  /// When the next one rings, by [clock]; null while none is set.
  double? get next {
    double? next;
    for (final alarm in _set) {
      if (next == null || alarm._at < next) next = alarm._at;
    }
    return next;
  }

  /// Rings each alarm that is due, the earliest first.
  void ring() {
    while (true) {
      Alarm? due;
      for (final alarm in _set) {
        if (alarm._at > clock.now) continue;
        if (due == null || alarm._at < due._at) due = alarm;
      }
      if (due == null) return;
      due.clear();
      due.lateMs = clock.now - due._at;
      due._onRing();
    }
  }
}

/// One deadline.
final class Alarm {
  Alarm._(this._alarms, this._onRing);

  final Alarms _alarms;
  final void Function() _onRing;
  double _at = double.infinity;

  /// How late it rang last: a suspended process rings late.
  double lateMs = 0;

  /// Whether it will ring.
  bool get isSet => _alarms._set.contains(this);

  /// Rings [ms] from now; an earlier setting is void.
  void after(double ms) {
    _at = _alarms.clock.now + (ms < 0 ? 0 : ms);
    _alarms._set.add(this);
  }

  /// Rings at the latest [ms] from now.
  void within(double ms) {
    if (!isSet || _at > _alarms.clock.now + ms) after(ms);
  }

  /// Does not ring.
  void clear() => _alarms._set.remove(this);
}
