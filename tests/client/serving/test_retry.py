from livematch.serving.retry import Attempts, Health


def test_tries_go_round_the_servers_with_growing_pauses():
    servers = [Health(), Health()]
    attempts = Attempts(servers, max_tries=6, first_pause_s=0.5)
    pauses = []
    while True:
        with attempts.next_server() as server:
            assert server.num_in_flight == 1
        pause_s = attempts.fail(server)
        if pause_s is None:
            break
        pauses.append(pause_s)
    assert pauses == [0, 0.5, 0, 1, 0, 2, 0, 4, 0, 8, 0]
    assert [server.num_in_flight for server in servers] == [0, 0]


def test_the_least_busy_server_that_has_not_failed_is_next():
    busy, idle, failed = Health(num_in_flight=2), Health(num_in_flight=1), Health()
    Attempts([failed], max_tries=2, first_pause_s=0).fail(failed)
    attempts = Attempts([busy, idle, failed], max_tries=1, first_pause_s=0)
    order = []
    for _ in range(3):
        with attempts.next_server() as server:
            order.append(server)
        attempts.fail(server)
    assert order == [idle, busy, failed]
