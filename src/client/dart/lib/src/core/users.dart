part of 'core.dart';

/// The user of the connection.
extension _Users on RelayCore {
  /// Online, the app says that the token may be of another user.
  void _checkUser() {
    _checkLater = false;
    final link = _current;
    _request?.cancel();
    _request = _tokens.ask(
      forceRefresh: false,
      onToken: (token) {
        if (link != _current) return;
        if (token == null) return signedOut();
        if (_tokens.isOfAnother(token)) _connectAnew(userOf(token));
      },
      onFailure: (_) {},
    );
  }

  /// Nothing of one user's may reach another user's devices: not the link, and
  /// not what waits to be sent.
  void _connectAnew(String? user) {
    const reason = 'another user is signed in';
    final wasOnline = _current != null;
    _endLinks();
    sender.clear(reason);
    _tokens.user = user;
    view.setConnecting();
    if (wasOnline) {
      view.emit(const LinkClosed(1000, reason, willReconnect: true));
    }
    _connect();
  }

  /// The session ends soon.
  void _refresh() {
    final link = _current;
    if (link == null) return;
    _refreshRequest?.cancel(); // one chain of refreshes, never two
    _refreshRequest = _tokens.ask(
      forceRefresh: true,
      onToken: (token) {
        if (link != _current) return;
        if (token == null) return signedOut();
        if (_tokens.isOfAnother(token)) return _connectAnew(userOf(token));
        link.say({'type': 'auth', 'token': token});
      },
      onFailure: (detail) {
        if (link != _current) return;
        view.error('token_unavailable', detail, null);
        _tokens.refreshAgain();
      },
    );
  }
}
