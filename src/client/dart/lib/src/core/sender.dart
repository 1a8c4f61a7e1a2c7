import 'dart:convert';
import 'dart:typed_data';

import '../timing.dart';
import '../types.dart';
import 'acks.dart';
import 'clock.dart';
import 'link.dart';
import 'outbox.dart';

/// Takes what the app sends, and hands it to the current link as fast as the
/// link takes it.
final class Sender {
  /// A sender for [queueBytes] of reliable messages. [unique] begins the ids
  /// of acknowledged sends.
  Sender(
    Alarms alarms,
    this._timing,
    int queueBytes,
    String unique, {
    required void Function() onTime,
    required void Function(String id, SendException? error) onSettled,
    required void Function(String code, String detail, String? id) onError,
  })  : outbox = Outbox(queueBytes),
        acks = Acks(alarms, unique, onSettled),
        _again = alarms.create(onTime),
        _onError = onError;

  final Timing _timing;
  final Alarm _again;
  final void Function(String code, String detail, String? id) _onError;

  /// What waits.
  final Outbox outbox;

  /// Sends that await their acknowledgement.
  final Acks acks;

  /// The largest message, as far as the relay has named it.
  int messageBytes = const Limits().messageBytes;

  /// Keeps a frame. False: a volatile frame has no link to go to.
  bool frame(int stream, List<int> bytes, {required bool hasLink}) {
    RangeError.checkValueInInterval(stream, 0, 0xff, 'stream');
    final message = Uint8List(bytes.length + 1)
      ..[0] = stream
      ..setAll(1, bytes);
    _checkSize(message.length);
    if (stream >= firstReliableStream) {
      outbox.putReliable(Waiting(message, message.length));
    } else if (hasLink) {
      outbox.putVolatile(stream, message);
    } else {
      return false;
    }
    return true;
  }

  /// Keeps a JSON value.
  void send(Object? data, {String? id}) {
    final message = {
      'type': 'send',
      'data': data,
      if (id != null) 'id': id,
    };
    outbox.putReliable(_encode(message, id: id));
  }

  /// Keeps a JSON value whose acknowledgement is awaited under the id that
  /// this returns.
  String sendAcked(Object? data, {String? id, double? limitMs}) {
    final name = id ?? acks.nextId();
    final message = {'type': 'send', 'data': data, 'id': name, 'ack': true};
    outbox.putReliable(_encode(message, id: name, ack: name));
    acks.open(name, limitMs ?? _timing.ack.ms);
    return name;
  }

  /// Keeps the answer to a message whose sender waits for it.
  void acknowledge(String id) =>
      outbox.putAnswer(_encode({'type': 'ack', 'id': id}));

  Waiting _encode(Map<String, Object?> message, {String? id, String? ack}) {
    final text = jsonEncode(message);
    final size = utf8.encode(text).length;
    _checkSize(size);
    return Waiting(text, size, id: id, ack: ack);
  }

  /// The relay would end the connection for good (1009).
  void _checkSize(int size) {
    if (size <= messageBytes) return;
    throw SendException(
      'too_big',
      "$size bytes are over the relay's limit of $messageBytes",
    );
  }

  /// Sends what may leave now through [link]. Reliable messages stay while
  /// they are [held].
  void flush(Link? link, {required bool held}) {
    _again.clear();
    while (link != null && link.writable) {
      final (:frame, :waiting, :waitMs) = outbox.take(
        link.volatileWait,
        held ? (_) => double.infinity : link.reliableWait,
      );
      if (frame != null) {
        link.sendVolatile(frame);
      } else if (waiting != null) {
        _sendReliable(link, waiting);
      } else {
        // Not sooner than after a millisecond: rounding must not make an alarm
        // ring again and again at one time.
        if (waitMs.isFinite) _again.after(waitMs < 1 ? 1 : waitMs);
        return;
      }
    }
  }

  void _sendReliable(Link link, Waiting waiting) {
    final Waiting(:ack, :size) = waiting;
    if (size > messageBytes) {
      final detail = '$size bytes, queued before the relay named its limit';
      acks.fail(ack, 'too_big', detail);
      _onError('too_big', detail, waiting.id);
    } else if (ack != null && !link.has('ack')) {
      const detail = 'this relay knows no acks: the message was not sent';
      acks.fail(ack, 'ack_unsupported', detail);
    } else if (ack == null || acks.isOpen(ack)) {
      link.sendReliable(waiting.message, size);
    } // else its time is over: nobody waits for it any more
  }

  /// Drops all that waits: it must not reach another user, or later days.
  void clear(String reason) {
    _again.clear();
    outbox.dropVolatile();
    final unsent = outbox.dropReliable();
    acks.failAll('closed', 'no acknowledgement can come: $reason');
    if (unsent == 0) return;
    final detail = '$unsent reliable messages were not sent: $reason';
    _onError('unsent', detail, null);
  }
}
