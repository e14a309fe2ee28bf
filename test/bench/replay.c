/*-------------------------------------------------------------------------
 *
 * replay.c
 *		Sends recorded request bodies over some connections, as fast as the
 *		server answers: what the target can take.
 *
 * usage: replay host port connections dir
 *
 * All bodies are read into memory first; each connection takes the next one
 * that nobody has sent.  Prints one JSON object: seconds, requests, bytes,
 * rows (the sum of the answers' rowcount) and errors.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_ANSWER	(1024 * 1024)

typedef struct Body
{
	char	   *data;
	size_t		len;
} Body;

static const char *host;
static const char *port;
static Body *bodies;
static int	nbodies;
static atomic_int next_body;
static atomic_llong n_rows;
static atomic_llong n_bytes;
static atomic_int n_errors;

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
read_bodies(const char *dir)
{
	struct dirent **names;
	int			n = scandir(dir, &names, NULL, alphasort);

	if (n < 0)
		die(dir);
	bodies = calloc(n, sizeof(Body));
	for (int i = 0; i < n; i++)
	{
		char		path[4096];
		struct stat st;
		FILE	   *f;
		Body	   *b = &bodies[nbodies];

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
		f = fopen(path, "r");
		if (f == NULL || fstat(fileno(f), &st) < 0 || (b->data = malloc(st.st_size + 1)) == NULL ||
			fread(b->data, 1, st.st_size, f) != (size_t) st.st_size)
			die(path);
		fclose(f);
		b->len = st.st_size;
		nbodies++;
	}
}

static int
connect_server(void)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM},
			   *ai;
	int			fd,
				on = 1;

	if (getaddrinfo(host, port, &hints, &ai) != 0)
		die("getaddrinfo");
	fd = socket(ai->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, ai->ai_addr, ai->ai_addrlen) < 0)
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	freeaddrinfo(ai);
	return fd;
}

static void
send_body(int fd, Body *b)
{
	char		head[512];
	struct iovec iov[2];
	int			first = 0;

	iov[0].iov_base = head;
	iov[0].iov_len = snprintf(head, sizeof(head),
							  "POST /_sql HTTP/1.1\r\nHost: %s:%s\r\n"
							  "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
							  host, port, b->len);
	iov[1].iov_base = b->data;
	iov[1].iov_len = b->len;
	while (first < 2)
	{
		ssize_t		n = writev(fd, iov + first, 2 - first);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("writev");
		while (first < 2 && (size_t) n >= iov[first].iov_len)
			n -= iov[first++].iov_len;
		if (first < 2)
		{
			iov[first].iov_base = (char *) iov[first].iov_base + n;
			iov[first].iov_len -= n;
		}
	}
}

/* reads one answer; buf gets head and body */
static void
read_answer(int fd, char *buf)
{
	size_t		got = 0,
				want = 0;

	do
	{
		ssize_t		n = recv(fd, buf + got, MAX_ANSWER - got, 0);
		char	   *eoh;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("recv");
		got += n;
		buf[got] = '\0';
		if (want == 0 && (eoh = strstr(buf, "\r\n\r\n")) != NULL)
		{
			char	   *cl = strcasestr(buf, "content-length:");

			if (cl == NULL || cl > eoh)
			{
				fprintf(stderr, "replay: an answer without a length\n");
				exit(1);
			}
			want = eoh + 4 - buf + strtoull(cl + 15, NULL, 10);
		}
	} while (want == 0 || got < want);
}

static void *
sender(void *arg)
{
	int			fd = (int) (intptr_t) arg;
	char	   *buf = malloc(MAX_ANSWER + 1);
	int			i;

	while ((i = atomic_fetch_add(&next_body, 1)) < nbodies)
	{
		char	   *p;

		send_body(fd, &bodies[i]);
		atomic_fetch_add(&n_bytes, bodies[i].len);
		read_answer(fd, buf);
		p = strstr(buf, "\"rowcount\":");
		if (strncmp(buf + 8, " 200", 4) != 0 || p == NULL)
		{
			if (atomic_fetch_add(&n_errors, 1) == 0)
				fprintf(stderr, "replay: %.2000s\n", buf);
		}
		else
			atomic_fetch_add(&n_rows, strtoll(p + 11, NULL, 10));
	}
	free(buf);
	return NULL;
}

int
main(int argc, char **argv)
{
	pthread_t  *threads;
	int			nconn;
	double		start;

	if (argc != 5)
	{
		fprintf(stderr, "usage: replay host port connections dir\n");
		return 2;
	}
	host = argv[1];
	port = argv[2];
	nconn = atoi(argv[3]);
	read_bodies(argv[4]);
	threads = calloc(nconn, sizeof(pthread_t));
	start = now();
	for (int i = 0; i < nconn; i++)
		if (pthread_create(&threads[i], NULL, sender, (void *) (intptr_t) connect_server()) != 0)
			die("pthread_create");
	for (int i = 0; i < nconn; i++)
		pthread_join(threads[i], NULL);
	printf("{\"seconds\": %.6f, \"requests\": %d, \"bytes\": %lld, \"rows\": %lld, \"errors\": %d}\n",
		   now() - start, nbodies, (long long) n_bytes, (long long) n_rows, (int) n_errors);
	return 0;
}
