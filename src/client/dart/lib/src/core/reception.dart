part of 'core.dart';

/// Hears the links of a [RelayCore].
final class _Reception implements LinkOwner {
  _Reception(this._core);

  final RelayCore _core;

  View get _view => _core.view;

  @override
  void onGone(Link link, int code, String reason) =>
      _core._onGone(link, code, reason);

  @override
  void onFrame(Link link, int stream, Uint8List bytes) {
    void deliver() => _core._do(EmitFrame(Frame(stream, bytes)));
    final inbox = _core._inbox;
    if (stream >= firstReliableStream) return inbox.inOrder(link, deliver);
    if (inbox.isNewest(link, stream)) deliver();
  }

  @override
  void onControl(Link link, String type, Map<String, Object?> message) {
    switch (type) {
      case 'message':
        final received = parseMessage(message);
        final ack = message['ack'] == true && received.id != null;
        final effect = EmitMessage(received, ack: ack);
        _core._inbox.inOrder(link, () => _core._do(effect));
      case 'overwritten':
        link.overwritten = parseOverwritten(message);
        // What waited for this socket came before this message; close 4001
        // follows and says nothing new.
        link.fail(4001, '');
      case 'acked':
        _core.sender.acks.succeed(field<String>(message, 'id'));
      case 'error':
        final error = parseError(message);
        _core.sender.acks.fail(error.id, error.code, error.detail);
        if (link == _core._current) _onError(error);
      default:
        if (link == _core._current) _onCurrent(link, type, message);
    }
  }

  void _onCurrent(Link link, String type, Map<String, Object?> message) {
    switch (type) {
      case 'peer':
        final device = parseDevice(message['device']);
        if (device == null) return;
        final slot = parsePeer(message, device);
        if (message['state'] == 'connected') {
          _view.setPeer(slot);
        } else if (_view.peer?.connection == slot?.connection) {
          _view.setPeer(null);
        }
        link.onPressure(false);
      case 'pressure':
        final isHigh = message['state'] == 'high';
        final isNew = isHigh != link.pressure;
        link.onPressure(isHigh);
        if (isNew) _view.emit(PressureChanged(isHigh: isHigh));
      case 'expiring':
        final at = _view.expiresAt = unixSeconds(message, 'expires_at');
        _core._tokens.refreshBefore(at);
        _view.emit(Expiring(at));
      case 'authenticated':
        final at = _view.expiresAt = unixSeconds(message, 'expires_at');
        _view.emit(Authenticated(at));
      case 'backplane':
        _view.backplaneIsUp = message['state'] != 'down';
        _view.emit(BackplaneChanged(isUp: _view.backplaneIsUp));
      case 'reconnect':
        final inMs = integer(message, 'in_ms') ?? 0;
        final reason = field<String>(message, 'reason') ?? '';
        // What is on its way already is as good as what starts later.
        if (_core._next == null && !_core._atBarrier) {
          _core._failures = 0;
          const words = 'the relay asks to move';
          _core._retryIn(inMs.toDouble(), 'restart', words, isOrdered: true);
        }
        final after = Duration(milliseconds: inMs);
        _view.emit(ReconnectAsked(reason, after: after));
      case 'pong':
        _view.emit(RttMeasured(_core.rtt!));
        _view.emit(DelayMeasured(_core.delay));
    }
  }

  void _onError(RelayError error) {
    _view.emit(error);
    if (error.code == 'wrong_user') {
      _core._connectAnew(null);
    } else if (tokenRefusals.contains(error.code)) {
      _core._tokens.refreshAgain();
    }
  }

  @override
  void onWelcome(Link link, Welcome welcome) {
    _core._inbox.endOld();
    if (link != _core._next) return;
    _core._inbox.onReplaced(_core._current);
    _core._current = link;
    _core._next = null;
    _core._attempts.onWelcome();
    _core._blocked = 0;
    _core.sender.messageBytes = welcome.limits.messageBytes;
    _core._tokens.stopRefresh();
    _core._forceRefresh = false;
    _view.expiresAt = welcome.expiresAt;
    _view.backplaneIsUp = true; // the relay says when it is not
    final slot = welcome.device.name;
    _view.setStatus(RelayStatus(RelayState.online, 'welcomed as the $slot'));
    _view.emit(Welcomed(welcome));
    _view.setPeer(welcome.peer);
    _core._flush();
    if (_core._checkLater) _core._checkUser();
  }

  @override
  void onWrite(Link link, Object message) => _core._do(Write(link.id, message));

  @override
  void onEnd(Link link) {
    _core._links.remove(link.id);
    _core._do(CloseSocket(link.id));
  }

  @override
  void onRoom(Link link) {
    if (link == _core._current) _core._flush();
  }
}
