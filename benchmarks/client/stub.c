/* A server that streams chunks at fixed times, each carrying the time at which it was sent.
 *
 *   stub PORT CHUNKS FIRST_US GAP_US
 *
 * Answers every POST on 127.0.0.1:PORT with a chunked text/event-stream: a role-only event at once, CHUNKS events with
 * one token each, the first FIRST_US after the request was read whole, the others GAP_US apart, then usage and [DONE].
 * Each event's "t" is CLOCK_MONOTONIC in ns, read right before the write; "r" is when the request's last byte reached
 * this machine's kernel, by its receive stamp, so that a loop that comes around late is no client's error; "first", in the
 * event with the usage, is when the first token left the kernel, by its transmit stamp. A client on the same machine can
 * subtract them from its own stamps: the difference is the client's error, to the microsecond. The same event has the
 * server's TTFT as vLLM's per-request metrics have it, so that a row's `residual_s` is the client's share.
 *
 * One thread, epoll and a timerfd; times are absolute, so that a late wake-up delays no later chunk.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 20000, REQUEST_MAX = 1 << 22 };

typedef struct {
    int fd, slot;           /* slot in the heap, -1 when nothing is due */
    size_t have, want;      /* bytes of the request read, and its whole size once known */
    char *request;
    int sent;               /* chunks sent */
    int64_t arrived, due;   /* ns */
    int64_t first_left;     /* ns: when the first token's segment went to the interface */
} conn;

static conn *conns[MAX_FDS];
static conn *heap[MAX_FDS];
static int heap_len, chunks;
static int64_t first_ns, gap_ns;

static int64_t clock_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* What CLOCK_REALTIME, the clock of the kernel's stamps, is ahead; again where the readings were interrupted. */
static int64_t wall_ahead_ns(void) {
    int64_t best = INT64_MAX, ahead = 0;
    for (int i = 0; i < 3 && best > 2000; i++) {
        int64_t before = now_ns(), wall = clock_ns(CLOCK_REALTIME), after = now_ns();
        if (after - before < best) { best = after - before; ahead = wall - (before + after) / 2; }
    }
    return ahead;
}

static void place(int i, conn *c) { heap[i] = c; c->slot = i; }

static void sift_up(int i) {
    conn *c = heap[i];
    while (i > 0 && heap[(i - 1) / 2]->due > c->due) { place(i, heap[(i - 1) / 2]); i = (i - 1) / 2; }
    place(i, c);
}

static void sift_down(int i) {
    conn *c = heap[i];
    for (;;) {
        int k = 2 * i + 1;
        if (k >= heap_len) break;
        if (k + 1 < heap_len && heap[k + 1]->due < heap[k]->due) k++;
        if (heap[k]->due >= c->due) break;
        place(i, heap[k]);
        i = k;
    }
    place(i, c);
}

static void push(conn *c) { place(heap_len++, c); sift_up(c->slot); }

static void drop(conn *c) {
    int i = c->slot;
    if (i < 0) return;
    c->slot = -1;
    heap_len--;
    if (i < heap_len) { conn *last = heap[heap_len]; place(i, last); sift_up(i); sift_down(last->slot); }
}

static void end(conn *c) {
    drop(c);
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->request);
    free(c);
}

/* Small writes on loopback: a socket buffer that is full means a client that reads nothing, and ends the stream. */
static int put(conn *c, const char *data, int size) { return write(c->fd, data, size) == size ? 0 : -1; }

/* The stamp in a message's control data, on CLOCK_MONOTONIC; `otherwise` where it has none. */
static int64_t stamp_of(struct msghdr *message, int64_t otherwise) {
    for (struct cmsghdr *m = CMSG_FIRSTHDR(message); m; m = CMSG_NXTHDR(message, m))
        if (m->cmsg_level == SOL_SOCKET && m->cmsg_type == SO_TIMESTAMPING) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(m), sizeof stamp);
            if (stamp.tv_sec) return (int64_t)stamp.tv_sec * 1000000000 + stamp.tv_nsec - wall_ahead_ns();
        }
    return otherwise;
}

/* As put, and notes when the kernel sent it: this process may be interrupted between "t" and the write. */
static int put_stamped(conn *c, const char *data, int size) {
    union { char bytes[CMSG_SPACE(sizeof(uint32_t))]; struct cmsghdr align; } ask = {0};
    struct iovec from = {(char *)data, size};
    struct msghdr message = {
        .msg_iov = &from, .msg_iovlen = 1, .msg_control = ask.bytes, .msg_controllen = sizeof ask.bytes};
    struct cmsghdr *m = CMSG_FIRSTHDR(&message);
    m->cmsg_level = SOL_SOCKET;
    m->cmsg_type = SO_TIMESTAMPING;
    m->cmsg_len = CMSG_LEN(sizeof(uint32_t));
    *(uint32_t *)CMSG_DATA(m) = SOF_TIMESTAMPING_TX_SOFTWARE;
    int64_t before = now_ns();
    if (sendmsg(c->fd, &message, 0) != size) return -1;
    char control[256];
    struct msghdr report = {.msg_control = control, .msg_controllen = sizeof control};
    c->first_left = recvmsg(c->fd, &report, MSG_ERRQUEUE) < 0 ? before : stamp_of(&report, before);
    return 0;
}

static int event(conn *c, const char *json, int stamped) {
    char out[1024];
    int body = (int)strlen(json) + 8;
    int size = snprintf(out, sizeof out, "%x\r\ndata: %s\n\n\r\n", body, json);
    return stamped ? put_stamped(c, out, size) : put(c, out, size);
}

static int begin(conn *c) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    c->due = c->arrived + first_ns;
    c->sent = 0;
    if (put(c, head, sizeof head - 1)) return -1;
    if (event(c, "{\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}", 0)) return -1;
    push(c);
    return 0;
}

static int step(conn *c) {
    char json[512];
    if (c->sent < chunks) {
        snprintf(json, sizeof json,
                 "{\"id\":\"stub\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":"
                 "[{\"index\":0,\"delta\":{\"content\":\" hi\"},\"finish_reason\":null}],\"r\":%lld,\"t\":%lld}",
                 (long long)c->arrived, (long long)now_ns());
        if (event(c, json, c->sent == 0)) return -1;
        c->sent++;
        c->due += gap_ns;
        if (c->sent < chunks) { sift_down(c->slot); return 0; }
    }
    drop(c);
    snprintf(json, sizeof json,
             "{\"id\":\"stub\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[],"
             "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%d,\"total_tokens\":%d},"
             "\"metrics\":{\"queue_time_ms\":0,\"time_to_first_token_ms\":%.6f},\"first\":%lld}",
             chunks, chunks + 10, (double)(c->first_left - c->arrived) / 1e6, (long long)c->first_left);
    if (event(c, json, 0) || event(c, "[DONE]", 0) || put(c, "0\r\n\r\n", 5)) return -1;
    return 0;
}

static int whole(conn *c) {
    if (!c->want) {
        char *body = memmem(c->request, c->have, "\r\n\r\n", 4);
        if (!body) return 0;
        char *length = strcasestr(c->request, "content-length:");
        c->want = (size_t)(body + 4 - c->request) + (length && length < body ? strtoul(length + 15, NULL, 10) : 0);
    }
    return c->have >= c->want;
}

static void readable(conn *c) {
    for (;;) {
        char control[256];
        struct iovec into = {c->request + c->have, REQUEST_MAX - 1 - c->have};
        struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(c->fd, &message, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) { end(c); return; }
        c->arrived = stamp_of(&message, now_ns());
        c->have += (size_t)n;
        c->request[c->have] = 0;
        if (whole(c)) {
            c->have = c->want = 0;
            if (begin(c)) { end(c); return; }
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: stub PORT CHUNKS FIRST_US GAP_US\n"), 2;
    chunks = atoi(argv[2]);
    first_ns = atoll(argv[3]) * 1000;
    gap_ns = atoll(argv[4]) * 1000;
    struct rlimit files = {MAX_FDS, MAX_FDS};
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int stamps = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_TSONLY; /* connections inherit it */
    setsockopt(server, SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof stamps);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 4096)) return perror("stub"), 1;
    int poll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = server};
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &e);
    e.data.fd = timer;
    epoll_ctl(poll, EPOLL_CTL_ADD, timer, &e);
    for (;;) {
        if (heap_len) {
            int64_t due = heap[0]->due;
            struct itimerspec when = {.it_value = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
        }
        struct epoll_event events[256];
        int n = epoll_wait(poll, events, 256, -1);
        while (heap_len && heap[0]->due <= now_ns()) {
            conn *c = heap[0];
            if (step(c)) end(c);
        }
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == timer) { uint64_t fired; (void)!read(timer, &fired, sizeof fired); continue; }
            if (fd != server) { if (conns[fd]) readable(conns[fd]); continue; }
            for (int got; (got = accept4(server, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                if (got >= MAX_FDS) { close(got); continue; }
                setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                conn *c = calloc(1, sizeof *c);
                c->fd = got;
                c->slot = -1;
                c->request = malloc(REQUEST_MAX);
                conns[got] = c;
                struct epoll_event add = {.events = EPOLLIN, .data.fd = got};
                epoll_ctl(poll, EPOLL_CTL_ADD, got, &add);
            }
        }
    }
}
