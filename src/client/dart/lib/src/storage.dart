import 'dart:async';
import 'dart:convert';
import 'dart:io';

/// What a client remembers between two starts of the app.
final class ClientRecord {
  /// A record of [client] and its last [attempt].
  const ClientRecord(this.client, this.attempt);

  /// The name of this installation: 1 to 64 of `A-Z a-z 0-9 - _`. The relay
  /// then knows that a restarted app takes over its own old socket.
  final String client;

  /// The number of the last connection attempt.
  final int attempt;
}

/// Keeps a [ClientRecord]. Two processes that run at one time need two of
/// them.
abstract interface class ClientStorage {
  /// The record; null where there is none yet.
  FutureOr<ClientRecord?> read();

  /// Keeps [record] before the socket of its attempt opens.
  FutureOr<void> write(ClientRecord record);
}

/// Remembers as long as the app runs: the default.
final class MemoryClientStorage implements ClientStorage {
  ClientRecord? _record;

  @override
  ClientRecord? read() => _record;

  @override
  void write(ClientRecord record) => _record = record;
}

/// Remembers in a small file, for example in the app's support folder.
final class FileClientStorage implements ClientStorage {
  /// A storage in the file at [path], whose folder exists.
  FileClientStorage(this.path);

  /// The file.
  final String path;

  @override
  Future<ClientRecord?> read() async {
    try {
      final value = jsonDecode(await File(path).readAsString());
      return switch (value) {
        {'client': final String client, 'attempt': final int attempt} =>
          ClientRecord(client, attempt),
        _ => null,
      };
    } on FileSystemException {
      return null;
    } on FormatException {
      return null;
    }
  }

  @override
  Future<void> write(ClientRecord record) async {
    // A file that is replaced at once is never half written.
    final next = File('$path.next');
    final text =
        jsonEncode({'client': record.client, 'attempt': record.attempt});
    await next.writeAsString(text, flush: true);
    await next.rename(path);
  }
}
