import '../types.dart';
import 'clock.dart';

/// Sends whose acknowledgement is awaited.
final class Acks {
  /// Settles each send once, with null if it arrived. [start] is unique over
  /// all starts of all apps, so that ids are, too.
  Acks(this._alarms, this._start, this._settle);

  final Alarms _alarms;
  final String _start;
  final void Function(String id, SendException? error) _settle;
  final Map<String, Alarm> _limits = {};
  int _count = 0;

  /// The id of the next send, whose acknowledgement may take [limitMs].
  String open(double limitMs) {
    _count += 1;
    final id = '$_start-$_count';
    _limits[id] = _alarms.create(() => fail(
          id,
          'timeout',
          'no acknowledgement in time: the message may have arrived',
        ))
      ..after(limitMs);
    return id;
  }

  /// Whether [id] is awaited.
  bool isOpen(String? id) => _limits.containsKey(id);

  /// The other device's library has delivered it.
  void succeed(String id) => _end(id, null);

  /// No acknowledgement will come.
  void fail(String id, String code, String message) =>
      _end(id, SendException(code, message));

  /// Nothing is awaited any more.
  void failAll(String code, String message) {
    for (final id in _limits.keys.toList()) {
      fail(id, code, message);
    }
  }

  void _end(String id, SendException? error) {
    final limit = _limits.remove(id);
    if (limit == null) return;
    limit.clear();
    _settle(id, error);
  }
}
