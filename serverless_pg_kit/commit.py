"""What became of a COMMIT, and what the caller of a request has to hear."""

from __future__ import annotations

from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult

from serverless_pg_kit.decisions.ending import CommitAnswer, Ending, Outcome, commit_outcome
from serverless_pg_kit.errors import CommitUnknown, TransactionFailed
from serverless_pg_kit.exchange import Answers, as_text

COMMITTED = CommitAnswer(tag="COMMIT")


def commit_answer(answers: list[PGresult]) -> CommitAnswer | None:
    """Return what the server answered to the COMMIT in a close message, or ``None`` if it did not come to that."""
    for result in answers:
        if result.status == ExecStatus.FATAL_ERROR:
            return CommitAnswer(
                code=as_text(result.error_field(DiagnosticField.SQLSTATE)),
                severity=as_text(  # poolers may send the latter only
                    result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
                    or result.error_field(DiagnosticField.SEVERITY)
                ),
            )
        if result.command_status == b"COMMIT":
            return COMMITTED
        if result.command_status == b"ROLLBACK":
            return CommitAnswer(tag="ROLLBACK")
    return None


def outcome_of(answers: list[PGresult]) -> Outcome:
    """Return what is known of the COMMIT in a close message from its `answers`."""
    return commit_outcome(commit_answer(answers))


def has_committed(answers: list[PGresult]) -> bool:
    """Tell whether the server has said that the COMMIT in a close message was done."""
    if len(answers) > 1 and answers[1].command_status == b"COMMIT":  # as in every message of the kit
        return True
    return outcome_of(answers) is Outcome.COMMITTED


def ending_problem(ending: Ending, answers: Answers) -> Exception | None:
    """Return the error that the caller has to hear of; `answers` are those to the message with the COMMIT."""
    if ending is Ending.COMMIT:
        return commit_problem(answers)
    if ending is Ending.FAILED:
        return TransactionFailed(
            "the transaction had failed before the end of the request: it was rolled back. If you catch database"
            " errors inside a request, roll back or use conn.transaction() around what may fail"
        )
    if ending is Ending.LOST:
        return TransactionFailed(
            "the connection was lost before COMMIT was sent: nothing since the last commit is kept", lost=True
        )
    if ending is Ending.UNFINISHED:
        return TransactionFailed(
            "a COPY, pipeline, transaction() block or two-phase transaction was left open at the end of the request:"
            " nothing since the last commit is kept"
        )
    return None


def commit_problem(answers: Answers) -> Exception | None:
    """Return the error in the answer to COMMIT, ``None`` if it is committed."""
    answer = commit_answer(answers)
    if answer is COMMITTED:
        return None
    if answer is None and answers.conn is None:
        return TransactionFailed("COMMIT was never sent (see the log): nothing of this request is kept")
    outcome = commit_outcome(answer)
    if outcome is Outcome.UNKNOWN:
        return CommitUnknown(
            "the connection was lost while COMMIT was under way: the transaction may or may not be committed;"
            " look for its result before you repeat it"
        )
    if outcome is Outcome.FAILED:
        return TransactionFailed("the transaction had failed before COMMIT: nothing of this request is committed")
    return answers.error
