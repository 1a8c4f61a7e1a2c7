/// How long a message takes each way, estimated from pings. The relay's clock
/// in a `pong` splits the round trip in two, up to a constant. The least of the
/// last half minute is the path itself; what is above it is a queue.
final class WayDelay {
  /// From this device to the relay, in milliseconds.
  double? upMs;

  /// From the relay to this device, in milliseconds.
  double? downMs;

  final _Least _trip = _Least();
  final _Least _up = _Least();
  final _Least _down = _Least();

  /// A ping left at [sent], and its pong came at [now]; the relay sent it at
  /// [relayTime] of its own clock.
  void onPong(double sent, double now, double relayTime) {
    final trip = now - sent;
    final path = _trip.of(now, trip);
    final queued = trip - path;
    // A clock that is set must not look like a queue: what the round trip does
    // not have, no way has.
    final upTime = relayTime - sent;
    final downTime = now - relayTime;
    upMs = path / 2 + _min(queued, upTime - _up.of(now, upTime));
    downMs = path / 2 + _min(queued, downTime - _down.of(now, downTime));
  }
}

double _min(double a, double b) => a < b ? a : b;

/// The least of a window that slides by halves.
final class _Least {
  static const double _halfMs = 15000;

  double _since = double.negativeInfinity;
  double _before = double.infinity;
  double _least = double.infinity;

  double of(double now, double value) {
    if (now - _since > _halfMs) {
      _before = now - _since > 2 * _halfMs ? double.infinity : _least;
      _least = double.infinity;
      _since = now;
    }
    _least = _min(_least, value);
    return _min(_before, _least);
  }
}
