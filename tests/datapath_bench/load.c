/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The benchmark's load: round trips of one byte, whole connections, large
 * writes, and small datagrams one way. Nothing between two system calls but a counter: on one CPU
 * whatever the tool does itself would hide what the packets cost.
 *
 *	load tcp_server|udp_server|tcp_sink|udp_sink ADDRESS PORT
 *		until killed; prints "ready"
 *	load tcp_rr|tcp_crr|udp_rr ADDRESS PORT MILLISECONDS
 *	load tcp_stream|udp_rate ADDRESS PORT MILLISECONDS
 *		the latter two to a sink
 *
 * A client prints one JSON object: how much was done (a stream: bytes), lost,
 * and how long it took. Connections end by close() and FIN, by the server first as in HTTP/1.0,
 * so that the client's ports do not run out in TIME_WAIT. C99 and POSIX.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The first byte of a request says what is wanted. */
enum wanted {
	ECHO = 'e',  /* the same back */
	CLOSE = 'c', /* the same back, then close */
	STREAM = 's', /* drop all that follows, close at its end */
	COUNT = 'n', /* count it */
	REPORT = 'r' /* how many were counted since the last report */
};

/* With its headers 64 bytes on an Ethernet, checksum included. */
#define DATAGRAM 18
/*
 * The receiver answers now and then, as every real protocol does: strict
 * admission needs to see both directions. */
#define ANSWER_EVERY 4096
#define WRITE 65536
#define RECEIVE_BUFFER (4 << 20)
#define REPLY_TIMEOUT_US 500000
#define REPORT_TRIES 10

struct outcome {
	uint64_t count;
	uint64_t lost;
};

static volatile sig_atomic_t over;

static void on_alarm(int number)
{
	(void)number;
	over = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Without SA_RESTART: it must end a recv() that waits for a lost packet. */
static void stop_after(long milliseconds)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_value = {
		.tv_sec = milliseconds / 1000,
		.tv_usec = milliseconds % 1000 * 1000,
	} };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int open_socket(int type)
{
	int one = 1, fd = socket(AF_INET, type, 0);

	if (fd < 0)
		die("socket");
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

/* -1 if the time was over before the other side answered. */
static int connected(int type, const struct sockaddr_in *server)
{
	int fd = open_socket(type);

	if (!connect(fd, (const struct sockaddr *)server, sizeof(*server)))
		return fd;
	if (errno != EINTR)
		die("connect");
	close(fd);
	return -1;
}

static int bound(int type, const struct sockaddr_in *address)
{
	int one = 1, fd = open_socket(type);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (const struct sockaddr *)address, sizeof(*address)))
		die("bind");
	return fd;
}

static void say_ready(void)
{
	puts("ready");
	fflush(stdout);
}

static void serve_stream(int fd)
{
	static char buffer[WRITE];

	while (recv(fd, buffer, sizeof(buffer), 0) > 0)
		;
}

static void serve_connection(int fd)
{
	char request;

	while (recv(fd, &request, 1, 0) == 1) {
		if (request == STREAM) {
			serve_stream(fd);
			break;
		}
		if (send(fd, &request, 1, MSG_NOSIGNAL) != 1)
			break;
		if (request == CLOSE)
			break;
	}
	close(fd);
}

static void serve_tcp(const struct sockaddr_in *address)
{
	int one = 1, listener = bound(SOCK_STREAM, address);

	if (listen(listener, 128))
		die("listen");
	say_ready();
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			die("accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		serve_connection(fd);
	}
}

static void serve_udp(const struct sockaddr_in *address)
{
	int size = RECEIVE_BUFFER, fd = bound(SOCK_DGRAM, address);
	uint64_t count = 0;

	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	say_ready();
	for (;;) {
		struct sockaddr_in sender;
		socklen_t length = sizeof(sender);
		char data[DATAGRAM];
		ssize_t got = recvfrom(fd, data, sizeof(data), 0,
				       (struct sockaddr *)&sender, &length);

		if (got < 1)
			continue;
		if (data[0] == COUNT && ++count % ANSWER_EVERY)
			continue;
		if (data[0] == REPORT) {
			memcpy(data + 1, &count, sizeof(count));
			got = 1 + sizeof(count);
			count = 0;
		}
		sendto(fd, data, got, 0, (struct sockaddr *)&sender, length);
	}
}

/*
 * A task that was woken may take the CPU at once, for each packet, and that
 * switch costs as much as a packet's whole way; a batch task does not.
 */
static void yield_to_sender(void)
{
	struct sched_param parameters = { 0 };

	if (sched_setscheduler(0, SCHED_BATCH, &parameters))
		die("sched_setscheduler");
}

static struct outcome tcp_rr(const struct sockaddr_in *server)
{
	struct outcome outcome = { 0 };
	int fd = connected(SOCK_STREAM, server);
	char byte = ECHO;

	while (!over) {
		if (send(fd, &byte, 1, 0) != 1)
			die("send");
		if (recv(fd, &byte, 1, 0) == 1)
			outcome.count++;
		else if (errno != EINTR)
			die("recv");
	}
	close(fd);
	return outcome;
}

/* Counts a connection once its end has been seen from both sides. */
static struct outcome tcp_crr(const struct sockaddr_in *server)
{
	struct outcome outcome = { 0 };

	while (!over) {
		int fd = connected(SOCK_STREAM, server);
		char byte = CLOSE;

		if (fd < 0)
			break;
		if (send(fd, &byte, 1, 0) != 1)
			die("send");
		if (recv(fd, &byte, 1, 0) == 1 && !recv(fd, &byte, 1, 0))
			outcome.count++;
		close(fd);
	}
	return outcome;
}

/* The machine's own choice may be BBR, whose pacing hides the datapath. */
static struct outcome tcp_stream(const struct sockaddr_in *server)
{
	static char buffer[WRITE] = { STREAM };
	struct outcome outcome = { 0 };
	int fd = open_socket(SOCK_STREAM);

	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
		die("cubic");
	if (connect(fd, (const struct sockaddr *)server, sizeof(*server)))
		die("connect");
	while (!over) {
		ssize_t sent = send(fd, buffer, sizeof(buffer), 0);

		if (sent > 0)
			outcome.count += sent;
		else if (errno != EINTR)
			die("send");
	}
	shutdown(fd, SHUT_WR);
	if (recv(fd, buffer, sizeof(buffer), 0))
		die("recv");
	close(fd);
	return outcome;
}

static int udp_client(const struct sockaddr_in *server)
{
	struct timeval timeout = { .tv_usec = REPLY_TIMEOUT_US };
	int fd = connected(SOCK_DGRAM, server);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return fd;
}

static struct outcome udp_rr(const struct sockaddr_in *server)
{
	struct outcome outcome = { 0 };
	int fd = udp_client(server);
	char byte = ECHO;

	while (!over) {
		if (send(fd, &byte, 1, 0) != 1)
			die("send");
		if (recv(fd, &byte, 1, 0) == 1)
			outcome.count++;
		else if (!over)
			outcome.lost++;
	}
	return outcome;
}

/* The answer comes behind all datagrams that were sent before. */
static uint64_t reported(int fd)
{
	char data[DATAGRAM] = { REPORT };
	uint64_t count;

	for (int tries = 0; tries < REPORT_TRIES; tries++) {
		send(fd, data, sizeof(data), 0);
		for (;;) {
			ssize_t got = recv(fd, data, sizeof(data), 0);

			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0)
				break;
			if (data[0] != REPORT)
				continue;
			memcpy(&count, data + 1, sizeof(count));
			return count;
		}
		data[0] = REPORT;
	}
	fprintf(stderr, "the receiver does not report\n");
	exit(1);
	return 0; /* for a compiler that does not know exit() */
}

static struct outcome udp_rate(int fd)
{
	struct outcome outcome = { 0 };
	char data[DATAGRAM] = { COUNT }, answer[DATAGRAM];
	uint64_t sent = 0;

	while (!over) {
		if (send(fd, data, sizeof(data), 0) == sizeof(data))
			sent++;
		if (sent % ANSWER_EVERY == 0)
			recv(fd, answer, sizeof(answer), MSG_DONTWAIT);
	}
	outcome.count = reported(fd);
	outcome.lost = sent - outcome.count;
	return outcome;
}

static int run_client(const char *load, const struct sockaddr_in *server,
		      long milliseconds)
{
	struct outcome outcome;
	double began, took;
	int fd = -1;

	if (!strcmp(load, "udp_rate")) {
		fd = udp_client(server);
		reported(fd); /* sets the count to 0 */
	}
	stop_after(milliseconds);
	began = now();
	if (!strcmp(load, "tcp_rr"))
		outcome = tcp_rr(server);
	else if (!strcmp(load, "tcp_crr"))
		outcome = tcp_crr(server);
	else if (!strcmp(load, "tcp_stream"))
		outcome = tcp_stream(server);
	else if (!strcmp(load, "udp_rr"))
		outcome = udp_rr(server);
	else if (fd >= 0)
		outcome = udp_rate(fd);
	else
		return 2;
	took = now() - began;
	printf("{\"count\": %llu, \"lost\": %llu, \"seconds\": %.6f}\n",
	       (unsigned long long)outcome.count,
	       (unsigned long long)outcome.lost, took);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };

	if (argc < 4 || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1) {
		fprintf(stderr, "usage: load WHAT ADDRESS PORT [MILLISECONDS]\n");
		return 2;
	}
	address.sin_port = htons(atoi(argv[3]));
	if (strstr(argv[1], "_sink"))
		yield_to_sender();
	if (!strcmp(argv[1], "tcp_server") || !strcmp(argv[1], "tcp_sink"))
		serve_tcp(&address);
	else if (!strcmp(argv[1], "udp_server") || !strcmp(argv[1], "udp_sink"))
		serve_udp(&address);
	else if (argc == 5)
		return run_client(argv[1], &address, atol(argv[4]));
	return 2;
}
