import 'dart:collection';
import 'dart:typed_data';

import '../types.dart';

/// A reliable message that waits.
final class Waiting {
  /// A message of [size] bytes, a [String] or [Uint8List].
  const Waiting(this.message, this.size, {this.id, this.ack = false});

  /// The message.
  final Object message;

  /// Its size on the wire.
  final int size;

  /// The sender's id for it.
  final String? id;

  /// Whether an acknowledgement is wanted.
  final bool ack;
}

/// What waits to be sent: the newest frame of each volatile stream, and
/// reliable messages in order.
final class Outbox {
  /// An outbox for [queueBytes] of reliable messages.
  Outbox(this.queueBytes);

  /// The most messages that wait.
  static const int queueMessages = 1000;

  /// The most bytes of reliable messages that wait.
  final int queueBytes;

  // In the order of their turns.
  final LinkedHashMap<int, Uint8List> _volatile = LinkedHashMap();
  final Queue<Waiting> _reliable = Queue();
  int _bytes = 0;

  /// Volatile frames that a newer one replaced, or that had no connection.
  int dropped = 0;

  /// Keeps a volatile frame. It takes the place of an older one in the line,
  /// so that no stream starves another.
  void putVolatile(int stream, Uint8List message) {
    if (_volatile.containsKey(stream)) dropped += 1;
    _volatile[stream] = message;
  }

  /// Keeps a reliable message, or throws `queue_full`.
  void putReliable(Waiting waiting) {
    if (_reliable.length >= queueMessages ||
        _bytes + waiting.size > queueBytes) {
      throw const SendException(
        'queue_full',
        'too many reliable messages wait to be sent',
      );
    }
    _reliable.add(waiting);
    _bytes += waiting.size;
  }

  /// The volatile frame whose turn it is.
  Uint8List? get nextVolatile =>
      _volatile.isEmpty ? null : _volatile.values.first;

  /// The reliable message whose turn it is.
  Waiting? get nextReliable => _reliable.isEmpty ? null : _reliable.first;

  /// Takes [nextVolatile] out.
  void takeVolatile() => _volatile.remove(_volatile.keys.first);

  /// Takes [nextReliable] out.
  void takeReliable() => _bytes -= _reliable.removeFirst().size;

  /// Drops what is volatile: its connection has gone.
  void dropVolatile() {
    dropped += _volatile.length;
    _volatile.clear();
  }

  /// Takes all reliable messages out.
  List<Waiting> takeAllReliable() {
    final all = _reliable.toList();
    _reliable.clear();
    _bytes = 0;
    return all;
  }
}
