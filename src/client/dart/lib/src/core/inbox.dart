import 'link.dart';

/// Keeps the order of what arrives while two links are open: reliable
/// messages of the new link wait for the rest of the old one, and no volatile
/// frame comes after a newer one of its stream.
final class Inbox {
  /// So many messages wait for an old link, no more.
  static const int limit = 1000;

  /// The link that the current one replaced; it still delivers its rest.
  Link? old;

  final List<void Function()> _waiting = [];
  final Set<int> _newerStreams = {};

  /// [link] replaces [replaced], which may be null.
  void onReplaced(Link? replaced) {
    old = replaced;
    replaced?.linger();
  }

  /// Delivers a reliable message of [link] in its turn.
  void inOrder(Link link, void Function() deliver) {
    if (old == null || link == old) return deliver();
    _waiting.add(deliver);
    if (_waiting.length >= limit) endOld();
  }

  /// Whether a volatile frame of [link] is the newest of its stream.
  bool isNewest(Link link, int stream) {
    if (old == null) return true;
    if (link == old) return !_newerStreams.contains(stream);
    _newerStreams.add(stream);
    return true;
  }

  /// The old link delivers nothing any more.
  void endOld() {
    old?.end();
    old = null;
    _newerStreams.clear();
    final waiting = _waiting.toList();
    _waiting.clear();
    for (final deliver in waiting) {
      deliver();
    }
  }
}
