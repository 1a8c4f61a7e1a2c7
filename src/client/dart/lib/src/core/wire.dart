import 'dart:convert';

import '../events.dart';
import '../types.dart';

/// The protocol that this library speaks.
const String protocol = 'duorelay.v1';

/// The JSON object in a text message; null where it is none.
Map<String, Object?>? parse(String text) {
  try {
    final value = jsonDecode(text);
    return value is Map<String, Object?> ? value : null;
  } on FormatException {
    return null;
  }
}

/// A field of a JSON object that has the expected type; null otherwise. A
/// newer relay may send more than this library knows.
T? field<T>(Map<String, Object?> object, String name) {
  final value = object[name];
  return value is T ? value : null;
}

/// A whole number of a JSON object.
int? integer(Map<String, Object?> object, String name) =>
    field<num>(object, name)?.toInt();

/// A time in Unix seconds.
DateTime unixSeconds(Map<String, Object?> object, String name) =>
    DateTime.fromMillisecondsSinceEpoch(
      ((field<num>(object, name) ?? 0) * 1000).round(),
      isUtc: true,
    );

/// The device of that name; null for anything else.
Device? parseDevice(Object? name) => switch (name) {
      'desktop' => Device.desktop,
      'mobile' => Device.mobile,
      _ => null,
    };

/// The connection in [object] that holds the slot of [device].
Peer? parsePeer(Map<String, Object?> object, Device device) {
  final connection = field<String>(object, 'connection');
  if (connection == null) return null;
  return Peer(device, connection, integer(object, 'generation') ?? 0);
}

/// The relay's first message.
Welcome parseWelcome(Map<String, Object?> object) {
  final device = parseDevice(object['device']) ?? Device.mobile;
  final peer = field<Map<String, Object?>>(object, 'peer');
  final limits = field<Map<String, Object?>>(object, 'limits') ?? const {};
  const usual = Limits();
  return Welcome(
    connection: field<String>(object, 'connection') ?? '',
    device: device,
    generation: integer(object, 'generation') ?? 0,
    uid: field<String>(object, 'uid') ?? '',
    tenant: field<String>(object, 'tenant'),
    peer: peer == null ? null : parsePeer(peer, device.other),
    expiresAt: unixSeconds(object, 'expires_at'),
    heartbeat: Duration(milliseconds: integer(object, 'heartbeat_ms') ?? 0),
    limits: Limits(
      messageBytes: integer(limits, 'message_bytes') ?? usual.messageBytes,
      messagesPerSecond: integer(limits, 'messages_per_second') ?? 0,
      queueBytes: integer(limits, 'queue_bytes') ?? usual.queueBytes,
      bytesPerSecond: integer(limits, 'bytes_per_second') ?? 0,
    ),
    instance: field<String>(object, 'instance') ?? '',
    features: {
      ...?field<List<Object?>>(object, 'features')?.whereType<String>(),
    },
  );
}

/// A message from the other device or the server.
RelayMessage parseMessage(Map<String, Object?> object) => RelayMessage(
      from: parseDevice(object['from']),
      data: object['data'],
      text: field<String>(object, 'text'),
      id: field<String>(object, 'id'),
    );

/// The new holder of a slot.
Overwritten parseOverwritten(Map<String, Object?> object) {
  final by = field<Map<String, Object?>>(object, 'by') ?? const {};
  return Overwritten(
    connection: field<String>(by, 'connection'),
    generation: integer(by, 'generation'),
    sameClient: field<bool>(by, 'same_client'),
  );
}

/// The relay's complaint.
RelayError parseError(Map<String, Object?> object) => RelayError(
      field<String>(object, 'code') ?? '',
      field<String>(object, 'detail') ?? '',
      id: field<String>(object, 'id'),
    );
