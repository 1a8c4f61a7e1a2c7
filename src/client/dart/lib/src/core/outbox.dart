import 'dart:collection';
import 'dart:typed_data';

import '../types.dart';

/// A reliable message that waits.
final class Waiting {
  /// A message of [size] bytes, a [String] or [Uint8List]. [ack] is the id
  /// under which its acknowledgement is awaited.
  const Waiting(this.message, this.size, {this.id, this.ack});

  /// The message.
  final Object message;

  /// Its size on the wire.
  final int size;

  /// The sender's id for it.
  final String? id;

  /// The id under which an acknowledgement is awaited.
  final String? ack;
}

/// What waits to be sent: the newest frame of each volatile stream, and
/// reliable messages in order. The two lanes take turns, so that neither a
/// busy stream nor a long queue starves the other.
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
  bool _volatileTurn = true;

  /// Bytes of reliable messages that wait.
  int bytes = 0;

  /// Volatile frames that a newer one replaced, or whose connection ended.
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
        bytes + waiting.size > queueBytes) {
      throw const SendException(
        'queue_full',
        'too many reliable messages wait to be sent: wait for drained()',
      );
    }
    _push(waiting);
  }

  /// Keeps an answer that the other device waits for: bounded by what it sent,
  /// and not by what this side has queued.
  void putAnswer(Waiting waiting) {
    if (_reliable.length < 2 * queueMessages) _push(waiting);
  }

  void _push(Waiting waiting) {
    _reliable.add(waiting);
    bytes += waiting.size;
  }

  /// Whether at most half of the queue is taken.
  bool get isDrained =>
      _reliable.length <= queueMessages ~/ 2 && bytes <= queueBytes / 2;

  /// Takes the message that leaves next: a frame, a reliable message, or
  /// neither, and then the milliseconds to wait. The two functions say how long
  /// a message of a size has to wait in its lane.
  ({Uint8List? frame, Waiting? waiting, double waitMs}) take(
    double Function(int size) volatileWait,
    double Function(int size) reliableWait,
  ) {
    const never = double.infinity;
    final stream = _volatile.isEmpty ? null : _volatile.keys.first;
    final frame = _volatile[stream];
    final waiting = _reliable.isEmpty ? null : _reliable.first;
    final frameMs = frame == null ? never : volatileWait(frame.length);
    if (frame != null && _volatileTurn && frameMs > 0) {
      // A reliable message now would take the room that the frame waits for.
      return (frame: null, waiting: null, waitMs: frameMs);
    }
    final waitingMs = waiting == null ? never : reliableWait(waiting.size);
    if (frameMs <= 0 && (_volatileTurn || waitingMs > 0)) {
      _volatileTurn = waiting == null;
      _volatile.remove(stream);
      return (frame: frame, waiting: null, waitMs: 0);
    }
    if (waitingMs <= 0) {
      _volatileTurn = true;
      _reliable.removeFirst();
      bytes -= waiting!.size;
      return (frame: null, waiting: waiting, waitMs: 0);
    }
    final wait = frameMs < waitingMs ? frameMs : waitingMs;
    return (frame: null, waiting: null, waitMs: wait);
  }

  /// Drops what is volatile: its connection has gone.
  void dropVolatile() {
    dropped += _volatile.length;
    _volatile.clear();
  }

  /// Drops what is reliable, and says how many messages that were.
  int dropReliable() {
    final count = _reliable.length;
    _reliable.clear();
    bytes = 0;
    return count;
  }
}
