import 'dart:convert';
import 'dart:typed_data';

import '../types.dart';
import 'acks.dart';
import 'clock.dart';
import 'link.dart';
import 'outbox.dart';

/// Decides which message leaves next, and when.
final class Sender {
  /// Sends through the link that [flush] names.
  Sender(Alarms alarms, this._clock, int queueBytes, this._acks, this._onError)
      : outbox = Outbox(queueBytes) {
    _again = alarms.create(() => onTime());
  }

  final Clock _clock;
  final Acks _acks;
  final void Function(String code, String detail, String? id) _onError;

  /// What waits.
  final Outbox outbox;

  /// Called when something that waited for its time may leave.
  late final void Function() onTime;

  late final Alarm _again;
  bool _reliableTurn = false;

  /// The largest message, as far as the relay has named it.
  int messageBytes = const Limits().messageBytes;

  /// Throws `too_big` for a message that would end the connection (1009).
  void checkSize(int size) {
    if (size <= messageBytes) return;
    throw SendException(
      'too_big',
      "$size bytes are over the relay's limit of $messageBytes",
    );
  }

  /// A frame as it goes over the wire.
  static Uint8List encodeFrame(int stream, List<int> bytes) =>
      Uint8List(bytes.length + 1)
        ..[0] = stream
        ..setAll(1, bytes);

  /// A `send` as it goes over the wire.
  static Waiting encodeSend(Object? data, {String? id, bool ack = false}) {
    final text = jsonEncode({
      'type': 'send',
      'data': data,
      if (id != null) 'id': id,
      if (ack) 'ack': true,
    });
    return Waiting(text, utf8.encode(text).length, id: id, ack: ack);
  }

  /// Sends what may leave now through [link]. Reliable messages stay while
  /// they are [held].
  void flush(Link? link, {required bool held}) {
    _again.clear();
    if (link == null || link.welcome == null) return;
    while (link.writable) {
      final frame = outbox.nextVolatile;
      final waiting = held ? null : outbox.nextReliable;
      final frameWait = frame == null ? _never : _wait(link, frame.length);
      final reliableWait = waiting == null || !link.takesReliable(waiting.size)
          ? _never
          : _wait(link, waiting.size);
      if (frameWait > 0 && reliableWait > 0) {
        final wait = frameWait < reliableWait ? frameWait : reliableWait;
        if (wait.isFinite) _again.after(wait);
        return;
      }
      // In turns, so that neither a bulk transfer nor a fast stream starves
      // the other.
      if (reliableWait == 0 && (_reliableTurn || frameWait > 0)) {
        _reliableTurn = false;
        outbox.takeReliable();
        _sendReliable(link, waiting!);
      } else {
        _reliableTurn = true;
        outbox.takeVolatile();
        link.write(frame!, size: frame.length, reliable: false);
      }
    }
  }

  static const double _never = double.infinity;

  double _wait(Link link, int size) {
    final rate = link.rate.waitFor(size);
    final window = link.pacing.waitFor(size, _clock.now);
    return rate > window ? rate : window;
  }

  void _sendReliable(Link link, Waiting waiting) {
    if (waiting.size > messageBytes) {
      final detail = '${waiting.size} bytes, queued before the relay named its '
          'limit';
      _refuse(waiting, 'too_big', detail);
    } else if (waiting.ack && !link.has('ack')) {
      _refuse(waiting, 'ack_unsupported', 'this relay cannot acknowledge');
    } else {
      link.write(waiting.message, size: waiting.size, reliable: true);
    }
  }

  void _refuse(Waiting waiting, String code, String detail) {
    final id = waiting.id;
    if (waiting.ack && id != null) {
      _acks.fail(id, code, detail);
    } else {
      _onError(code, detail, id);
    }
  }

  /// Drops all that waits: it must not reach another user, or later days.
  void drop() {
    _again.clear();
    outbox.dropVolatile();
    var unsent = 0;
    for (final waiting in outbox.takeAllReliable()) {
      if (waiting.ack) {
        _refuse(waiting, 'unsent', 'the connection stopped before it was sent');
      } else {
        unsent += 1;
      }
    }
    if (unsent == 0) return;
    _onError('unsent', '$unsent reliable messages were not sent', null);
  }
}
