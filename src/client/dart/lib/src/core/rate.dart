import 'clock.dart';

/// The relay's limits of one connection, kept with some room: past them the
/// relay drops frames, and ends the connection after ten seconds (1008).
final class Rate {
  /// No limit until [limit] names one.
  Rate(this._clock);

  final Clock _clock;
  final _Bucket _messages = _Bucket();
  final _Bucket _bytes = _Bucket();

  /// The relay's limits; 0 is no limit.
  void limit({required int messagesPerSecond, required int bytesPerSecond}) {
    _messages.start(messagesPerSecond, 1, _clock.now);
    _bytes.start(bytesPerSecond, 4, _clock.now);
  }

  /// In how many milliseconds a message of [bytes] may leave; 0 is now.
  double waitFor(int bytes) {
    final messages = _messages.waitFor(1, _clock.now);
    final size = _bytes.waitFor(bytes, _clock.now);
    return messages > size ? messages : size;
  }

  /// A message of [bytes] leaves.
  void spend(int bytes) {
    _messages.spend(1, _clock.now);
    _bytes.spend(bytes, _clock.now);
  }
}

final class _Bucket {
  double _perMs = 0;
  double _burst = 0;
  double _left = 0;
  double _at = 0;

  /// A little under the relay's own limits: the two clocks differ, and
  /// messages arrive in bunches.
  static const double _share = 0.95;
  static const double _burstShare = 0.9;

  void start(int perSecond, int burstSeconds, double now) {
    _perMs = perSecond * _share / 1000;
    _burst = perSecond * burstSeconds * _burstShare;
    _left = _burst;
    _at = now;
  }

  void _fill(double now) {
    _left += (now - _at) * _perMs;
    if (_left > _burst) _left = _burst;
    _at = now;
  }

  double waitFor(int amount, double now) {
    if (_perMs == 0) return 0;
    _fill(now);
    // One message over the whole burst leaves when the bucket is full.
    final needed = amount < _burst ? amount.toDouble() : _burst;
    return _left >= needed ? 0 : (needed - _left) / _perMs;
  }

  void spend(int amount, double now) {
    if (_perMs == 0) return;
    _fill(now);
    _left -= amount;
  }
}
