import '../types.dart';
import 'clock.dart';

/// Sends whose acknowledgement is awaited.
final class Acks {
  /// Settles each send once, with null if it arrived. Ids begin with [_unique],
  /// which no other start of an app has.
  Acks(this._alarms, this._unique, this._onSettled);

  final Alarms _alarms;
  final String _unique;
  final void Function(String id, SendException? error) _onSettled;
  final Map<String, Alarm> _limits = {};
  int _count = 0;

  /// An id for the next send.
  String nextId() => '$_unique-${++_count}';

  /// Awaits [id] for at most [limitMs].
  void open(String id, double limitMs) {
    _limits[id] = _alarms.create(() => fail(
          id,
          'timeout',
          'no acknowledgement in time: the message may have arrived',
        ))
      ..after(limitMs);
  }

  /// Whether [id] is awaited.
  bool isOpen(String? id) => _limits.containsKey(id);

  /// The other device's library has delivered it.
  void succeed(String? id) => _end(id, null);

  /// No acknowledgement will come.
  void fail(String? id, String code, String message) =>
      _end(id, SendException(code, message));

  /// Nothing is awaited any more.
  void failAll(String code, String message) {
    for (final id in _limits.keys.toList()) {
      fail(id, code, message);
    }
  }

  void _end(String? id, SendException? error) {
    final limit = _limits.remove(id);
    if (limit == null) return;
    limit.clear();
    _onSettled(id!, error);
  }
}
