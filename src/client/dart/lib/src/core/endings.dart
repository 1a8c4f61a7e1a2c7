part of 'core.dart';

/// What comes after a link that ended, or that never came about.
extension Endings on RelayCore {
  /// The handshake of [id] came to nothing.
  void onHandshakeFailed(int id, HandshakeFailure failure) {
    final link = _links[id];
    if (link == null || link != _next) return;
    link.end();
    _next = null;
    if (failure.code.isNotEmpty) {
      _onRefusal(failure, tokenWasFresh: link.tokenWasFresh);
    } else if (failure.status == 0) {
      _carryOut(_backOff(
        'network',
        'the relay is out of reach: ${failure.detail}',
      ));
    } else {
      _askSession(link); // something else than a relay has answered
    }
    _flush(); // what the failed replacement held back may go on
  }

  void _askSession(Link link) {
    _session.after(_timing.session.ms);
    _sessionTokenWasFresh = link.tokenWasFresh;
    final url = _attempts.sessionUrl(_tokens.user);
    _do(AskSession(_serial, url, link.token));
  }

  /// The relay has answered [AskSession]: null is "it would let you in".
  void onSession(int serial, HandshakeFailure? failure) {
    if (serial != _serial) return;
    _session.clear();
    if (failure == null) {
      _blocked += 1;
      if (_blocked < 2) {
        return _carryOut(_backOff('handshake', 'the handshake failed'));
      }
      const code = 'upgrade_blocked';
      const detail = 'the relay answers over HTTP, but something between here '
          'and it does not let WebSockets through';
      _refused(const HandshakeFailure(status: 0, code: code, detail: detail));
      _carryOut(_backOff(code, detail));
    } else if (failure.code.isNotEmpty) {
      _onRefusal(failure, tokenWasFresh: _sessionTokenWasFresh);
    } else {
      _blocked = 0;
      _carryOut(_backOff('network', 'the relay cannot be reached'));
    }
  }

  void _onRefusal(HandshakeFailure failure, {required bool tokenWasFresh}) {
    _blocked = 0;
    _attempts.goAbove(failure.attempt);
    final next = afterRefusal(
      failure,
      _situation(isTrying: false),
      _timing,
      tokenWasFresh: tokenWasFresh,
    );
    if (next is Stop) _stopFor(next);
    _refused(failure, isFinal: next is Stop);
    if (next is! Stop) _carryOut(next);
  }

  void _refused(HandshakeFailure failure, {bool isFinal = false}) {
    final retryAfterMs = failure.retryAfterMs?.round();
    view.emit(Refused(
      status: failure.status,
      code: failure.code,
      detail: failure.detail,
      isFinal: isFinal,
      retryAfter:
          retryAfterMs == null ? null : Duration(milliseconds: retryAfterMs),
    ));
  }

  void _onGone(Link link, int code, String reason) {
    if (link == _inbox.old) return _inbox.endOld();
    final wasCurrent = link == _current;
    if (!wasCurrent && link != _next) return;
    if (link.isStable) _failures = 0;
    if (wasCurrent) {
      _current = null;
      sender.outbox.dropVolatile();
      _tokens.stopRefresh();
      _inbox.endOld();
    } else {
      _next = null;
    }
    final event = Closed(
      code,
      reason,
      isOpened: link.opened,
      isWelcomed: link.welcome != null,
      by: link.overwritten,
      hasSuccessor: link.hasSuccessor,
      sinceTakenBackMs: _clock.now - _takenBackAt,
    );
    final isTrying = wasCurrent && !_retry.isSet && _serial > link.serial;
    final next = afterClose(event, _situation(isTrying: isTrying), _timing);
    // Still online: the next socket's welcome is a moment away.
    if (next is Nothing && code == 4001) return;
    switch (next) {
      case Stop(:final isOverwritten, :final code, :final reason):
        _stopFor(next);
        view.emit(isOverwritten
            ? link.overwritten ?? const Overwritten()
            : Refused(status: 0, code: code, detail: reason, isFinal: true));
      case Ask():
        _askSession(link);
      case _:
        _carryOut(next);
    }
    if (wasCurrent) {
      final words = reason.isEmpty ? closeWords(code) : reason;
      final willReconnect = next is! Stop;
      view.emit(LinkClosed(code, words, willReconnect: willReconnect));
    }
    _flush(); // what the failed replacement held back may go on
  }

  Situation _situation({required bool isTrying}) => Situation(
        isLive: _current != null,
        isTrying: isTrying,
        failures: _failures,
      );

  Retry _backOff(String code, String reason) =>
      backOff(_situation(isTrying: false), _timing, code, reason);

  void _carryOut(Next next) {
    if (next.forceRefresh) _forceRefresh = true;
    switch (next) {
      case Retry(:final least, :final most):
        _failures = next.failures;
        if (next.takesBack) _takenBackAt = _clock.now;
        final ms = least + _random() * (most - least);
        _retryIn(ms, next.code, next.reason, isOrdered: next.isOrdered);
      case Stop():
        _stopFor(next);
      case Nothing() || Ask():
        if (_current == null) view.setConnecting();
    }
  }

  void _retryIn(
    double ms,
    String code,
    String reason, {
    bool isOrdered = false,
  }) {
    _serial += 1; // what is still awaited for an earlier attempt is void
    _request?.cancel();
    _session.clear();
    _atBarrier = false;
    _retryIsOrdered = isOrdered;
    _retry.after(ms);
    if (_current != null) return;
    final us = ms < 0 ? 0 : (ms * 1000).round();
    final retryIn = Duration(microseconds: us);
    view.setStatus(
      RelayStatus(RelayState.waiting, reason, code: code, retryIn: retryIn),
    );
  }

  /// Ends all links, and voids what any attempt still awaits.
  void _endLinks() {
    _serial += 1;
    _retry.clear();
    _session.clear();
    _request?.cancel();
    _tokens.stopRefresh();
    _atBarrier = false;
    _inbox.endOld();
    _next?.end();
    _current?.end();
    _next = null;
    _current = null;
    sender.outbox.dropVolatile();
  }

  void _stopFor(Stop stop) => _stop(RelayStatus(
        stop.isOverwritten ? RelayState.overwritten : RelayState.refused,
        stop.reason,
        code: stop.code,
      ));

  void _stop(RelayStatus status) {
    _suspended = false;
    _forceRefresh = false;
    _checkLater = false;
    _endLinks();
    sender.clear(status.reason);
    view.setStatus(status);
  }
}
