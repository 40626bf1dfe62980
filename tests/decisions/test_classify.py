from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.classify import NAME_RETRIES, Failure, FailureKind, Rule, classify, most_telling

SERVER = 'connection to server at "10.0.0.1", port 5432 failed: FATAL:  '


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (FailureKind.CAPACITY, "sorry, too many clients already"),
        (FailureKind.CAPACITY, "remaining connection slots are reserved for non-replication superuser connections"),
        (FailureKind.CAPACITY, "remaining connection slots are reserved for roles with the SUPERUSER attribute"),
        (
            FailureKind.CAPACITY,
            "remaining connection slots are reserved for roles with privileges of the"
            ' "pg_use_reserved_connections" role',
        ),
        (FailureKind.CAPACITY, 'too many connections for role "app"'),
        (FailureKind.CAPACITY, 'too many connections for database "app"'),
        (FailureKind.STARTING_UP, "the database system is starting up"),
        (FailureKind.STARTING_UP, "the database system is shutting down"),
        (FailureKind.STARTING_UP, "the database system is not yet accepting connections"),
        (FailureKind.STARTING_UP, "the database system is in recovery mode"),
        (FailureKind.POOLER_FULL, "no more connections allowed (max_client_conn)"),
        (FailureKind.POOLER_FULL, "client connections exceeded (max_db_connections)"),
        (FailureKind.POOLER_FULL, "MaxClientsInSessionMode: max clients reached"),
        (FailureKind.CREDENTIALS, 'password authentication failed for user "app"'),
        (FailureKind.CREDENTIALS, 'PAM authentication failed for user "app"'),
        (FailureKind.PERMANENT, 'database "nope" does not exist'),
        (FailureKind.PERMANENT, 'role "app" is not permitted to log in'),
        (FailureKind.PERMANENT, 'permission denied for database "app"'),
        (FailureKind.PERMANENT, 'database "app" is not currently accepting connections'),
        (FailureKind.PERMANENT, 'no pg_hba.conf entry for host "10.0.0.2", user "app", no encryption'),
        (FailureKind.PERMANENT, 'unsupported startup parameter: "options"'),
    ],
)
def test_words_of_the_server_decide_without_a_code(kind: FailureKind, words: str) -> None:
    """The English messages of servers and poolers are told apart although psycopg gives no SQLSTATE."""
    assert classify(SERVER + words).kind is kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FailureKind.NETWORK, 'connection to server at "h", port 1 failed: Connection refused\n\tIs the server up?'),
        (FailureKind.NETWORK, "connection failed: server closed the connection unexpectedly"),
        (FailureKind.NETWORK, "connection timeout expired"),
        (FailureKind.NETWORK, 'connection to server at "h" failed: session is read-only'),
        (
            FailureKind.PERMANENT,
            'connection to server at "h" failed: server does not support SSL, but SSL was required',
        ),
        (FailureKind.PERMANENT, 'connection to server at "h" failed: SSL error: certificate verify failed'),
        (FailureKind.PERMANENT, 'server certificate for "a" does not match host name "b"'),
        (FailureKind.UNKNOWN, "something nobody ever said"),
        (FailureKind.UNKNOWN, ""),
    ],
)
def test_words_of_the_client_library_decide(kind: FailureKind, message: str) -> None:
    """What libpq itself says about network and TLS is told apart too."""
    assert classify(message).kind is kind


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FailureKind.CAPACITY, "53300"),
        (FailureKind.STARTING_UP, "57P03"),
        (FailureKind.CREDENTIALS, "28P01"),
        (FailureKind.PERMANENT, "3D000"),
        (FailureKind.PERMANENT, "28000"),
        (FailureKind.UNKNOWN, "XX000"),
    ],
)
def test_code_decides_in_any_language(kind: FailureKind, code: str) -> None:
    """A server that speaks another language is understood by its SQLSTATE."""
    failure = classify("FATAL:  tut mir leid", [code])
    assert (failure.kind, failure.code) == (kind, code)


def test_every_line_is_read() -> None:
    """The refusal counts, not the misleading last line of libpq's second try without TLS."""
    message = SERVER + "sorry, too many clients already\n" + SERVER + 'no pg_hba.conf entry for host "h", no encryption'
    assert classify(message).kind is FailureKind.CAPACITY
    assert classify(message, ["53300", "28000"]).kind is FailureKind.CAPACITY


def test_names_chosen_by_users_do_not_decide() -> None:
    """A database whose name looks like an error message does not change what its absence means."""
    assert classify(SERVER + 'database "too many clients already" does not exist').kind is FailureKind.PERMANENT


def test_pooler_codes_leave_the_decision_to_the_words() -> None:
    """PgBouncer sends 08P01 for nearly everything, so its words count."""
    assert classify("FATAL:  no such database: nope", ["08P01"]).kind is FailureKind.PERMANENT
    assert classify("FATAL:  query_wait_timeout", ["08P01"]).kind is FailureKind.POOLER_FULL


# Recorded: of Supavisor and Neon from their sources, of RDS Proxy from its documentation. Not seen by these tests.
SUPAVISOR = [
    (
        FailureKind.POOLER_FULL,
        "XX000",
        "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15",
    ),
    (FailureKind.POOLER_FULL, "XX000", "(EMAXCONN) max client connections reached, limit: 200"),
    (FailureKind.POOLER_FULL, "XX000", "Max client connections reached"),
    (FailureKind.POOLER_FULL, "XX000", "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms"),
    (FailureKind.STARTING_UP, "XX000", "(EPOOLTERMINATING) connection pool is terminating, please reconnect"),
    (FailureKind.STARTING_UP, "XX000", "(EDBHANDLEREXITED) connection to database closed"),
    (FailureKind.NETWORK, "08006", "(EAUTHTIMEOUT) authentication timeout, closing connection"),
    (
        FailureKind.UNKNOWN,
        "XX000",
        "(ECIRCUITBREAKER) too many authentication failures, new connections are temporarily blocked",
    ),
    (FailureKind.PERMANENT, "XX000", "(ENOTFOUND) tenant/user app.abcdefgh not found"),
    (FailureKind.PERMANENT, "XX000", "(EBANNED) address is banned"),
    (FailureKind.PERMANENT, "XX000", "(ESSLREQUIRED) SSL connection is required"),
    (FailureKind.PERMANENT, "XX000", "(EINVALIDUSERINFO) no user name or project found"),
    (FailureKind.CREDENTIALS, "28P01", 'password authentication failed for user "app"'),
]
NEON = [
    (FailureKind.CREDENTIALS, "XX000", "password authentication failed for user 'app'"),
    (FailureKind.STARTING_UP, "XX000", "Couldn't connect to compute node"),
    (FailureKind.STARTING_UP, "XX000", "Control plane request failed"),
    (FailureKind.CAPACITY, "XX000", "Too many connections to this endpoint"),
    (
        FailureKind.PERMANENT,
        "XX000",
        "Endpoint ID is not specified. Either please upgrade the postgres client library (libpq)",
    ),
    (FailureKind.PERMANENT, "XX000", "This IP address 192.0.2.1 is not allowed to connect to this endpoint."),
    (FailureKind.PERMANENT, "XX000", "Your account or project has exceeded the compute time quota."),
]
RDS_PROXY = [
    (FailureKind.POOLER_FULL, "08000", "Timed-out waiting to acquire database connection."),
    (FailureKind.POOLER_FULL, None, "The maximum number of client connections to the proxy exceeded 1000."),
    (FailureKind.POOLER_FULL, None, "Rate of connection to proxy exceeded 500."),
    (FailureKind.POOLER_FULL, None, "The IAM authentication failed because of too many competing requests."),
    (FailureKind.CREDENTIALS, None, "The password that was provided for the role app is wrong."),
    (
        FailureKind.CREDENTIALS,
        None,
        "The IAM authentication failed for the role app. Check the IAM token for this role and try again.",
    ),
    (
        FailureKind.CREDENTIALS,
        None,
        "IAM authentication failed for user app. Check the IAM token for this user and try again.",
    ),
    (
        FailureKind.CREDENTIALS,
        None,
        "This RDS proxy has no credentials for the role app. Check the credentials for this role and try again.",
    ),
    (FailureKind.PERMANENT, None, "IAM is allowed only with SSL connections."),
    (FailureKind.PERMANENT, None, "This RDS Proxy requires TLS connections"),
    (
        FailureKind.PERMANENT,
        None,
        "A user name is missing from the connection startup packet. Provide a user name for this connection.",
    ),
    (FailureKind.PERMANENT, "0A000", "Feature not supported: RDS Proxy currently doesn't support the option geqo."),
    (FailureKind.PERMANENT, None, 'Request returned an error: database "nope" does not exist'),
]


@pytest.mark.parametrize(("kind", "code", "words"), [*SUPAVISOR, *NEON, *RDS_PROXY])
def test_recorded_words_of_poolers_decide(kind: FailureKind, code: str | None, words: str) -> None:
    """Whatever SQLSTATE comes with them, and without one."""
    assert classify(SERVER + words, [code] if code else []).kind is kind
    assert classify(SERVER + words).kind is kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (FailureKind.STARTING_UP, "server login has been failing, try again later (server_login_retry)"),
        (FailureKind.CREDENTIALS, "server login has been failing, cached error: password authentication failed"),
        (FailureKind.STARTING_UP, "client_login_timeout (server down)"),
        (FailureKind.POOLER_FULL, "client_login_timeout"),
        (FailureKind.STARTING_UP, "server conn crashed?"),
        (FailureKind.PERMANENT, "bouncer config error"),
        (FailureKind.PERMANENT, "SSL required"),
        (FailureKind.PERMANENT, "transaction blocks not allowed in statement pooling mode"),
    ],
)
def test_words_of_pgbouncer_decide(kind: FailureKind, words: str) -> None:
    """It sends 08P01 with all of them."""
    assert classify(SERVER + words, ["08P01"]).kind is kind


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("SSL error: certificate verify failed: certificate has expired", "renew"),
        ("SSL error: certificate verify failed: self-signed certificate in certificate chain", "sslrootcert"),
        ('server certificate for "a" does not match host name "b"', "name"),
        ("server does not support SSL, but SSL was required", "sslmode=disable"),
        ("FATAL:  SSL required", "sslmode=require"),
    ],
)
def test_refusals_about_tls_are_told_apart(words: str, advice: str) -> None:
    """Each of them is final, and asks for something else."""
    failure = classify(f'connection to server at "h", port 5432 failed: {words}')
    assert failure.kind is FailureKind.PERMANENT
    assert advice in failure.advice


@pytest.mark.parametrize(
    "words",
    [
        'weak sslmode "require" may not be used with sslrootcert=system',
        'could not load private key file "key": bad decrypt',
        'private key file "key" has group or world access',
        'invalid port number: "abc"',
        'definition of service "x" not found',
    ],
)
def test_faults_of_the_connection_string_are_permanent(words: str) -> None:
    """What libpq refuses on the client's side is not tried again."""
    assert classify(words).kind is FailureKind.PERMANENT


def test_answer_of_a_server_tells_more_than_a_refused_line() -> None:
    """With several hosts, a full one is reported rather than one that is down."""
    full, down = Failure(FailureKind.CAPACITY, "full"), Failure(FailureKind.NETWORK, "down")
    assert most_telling([full, down]) is full
    assert most_telling([down]) is down


def test_users_rules_come_first() -> None:
    """A user can turn any failure into another class, by code or by words."""
    by_words = Rule(FailureKind.PERMANENT, texts=("Too Many Clients",))
    by_code = Rule(FailureKind.CAPACITY, codes=("28P01",))
    assert classify(SERVER + "sorry, too many clients already", ["53300"], [by_words]).kind is FailureKind.PERMANENT
    assert classify("x", ["28P01"], [by_code]).kind is FailureKind.CAPACITY


def test_unresolved_name_is_tried_again_only_a_little() -> None:
    """A mistyped host name does not cost the whole budget."""
    failure = classify('could not translate host name "databse": Name or service not known')
    assert (failure.kind, failure.max_retries) == (FailureKind.NETWORK, NAME_RETRIES)
