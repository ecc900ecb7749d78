/*
 * What questions.c and gates.c share: requests that wait, for a verdict or at a gate.
 * Included by mirror.h, and by nothing else.
 */
#ifndef EXCLFS_QUESTIONS_H
#define EXCLFS_QUESTIONS_H

enum { LATENCIES = 124 }; /* buckets of microseconds: 0 to 3 each, from there on four to an octave of 32 bits */

struct questions {
    pthread_mutex_t lock;
    struct question *first, *last; /* in the order of asking, which is the order of their deadlines */
    int channel;                   /* our end of the socket pair */
    int wake;                      /* eventfd: something to send, or the end */
    pthread_t thread;
    bool running, stopping;
    unsigned unsent;
    atomic_ulong latencies[LATENCIES]; /* how many verdicts took how long */
};

struct sighting;
struct gate_news;

struct gates {
    _Atomic uint64_t watched;       /* a bit for each opcode that is looked at in any way */
    _Atomic uint64_t before, after; /* those that stop; changed under the lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct sighting *standing;         /* let go by number */
    struct sighting *gone, *last_gone; /* let go, for the thread to carry out */
    struct gate_news *first, *last;    /* not taken yet */
    unsigned done;                     /* of these, how many are not of stops */
    unsigned long numbers, untold;
    int news; /* eventfd: there are some */
    pthread_t thread;
    bool running, stopping;
};

/* questions.c */
enum { TESTED_MAX = 2, ROUNDS = 4 };
struct tested {
    struct inode *inode; /* referenced by the question; NULL: no inode of ours was there */
    struct key key;
    unsigned generation, open_generation;
};
struct question {
    struct question *next;
    uint64_t unique;
    struct timespec asked, deadline;
    bool sent;
    bool frozen; /* the words of `tested` are locked until this is answered */
    unsigned rounds;
    unsigned long tree; /* the generation of the tree when it was asked */
    struct sighting *sighting; /* of the request, if it is watched */
    struct tested tested[TESTED_MAX];
    size_t packet_size, message_size;
    char *packet;   /* what goes up */
    char message[]; /* the request as the kernel sent it */
};
int questions_init(struct mirror *mirror, int channel);
int questions_start(struct mirror *mirror);
void questions_stop(struct mirror *mirror);
void questions_wake(struct mirror *mirror); /* its thread has something to do */
void questions_destroy(struct mirror *mirror);
/* Whether this thread waits for the answer to a question. */
bool questions_await(struct mirror *mirror, uint32_t pid);
/* Each hands the request to the policy; it will be answered or carried out later by the questions' thread. */
void ask_removal(struct worker *worker, const struct request *request, const struct tested tested[TESTED_MAX],
                 unsigned long tree, const char *path, const char *second_path);
void ask_xattr(struct worker *worker, const struct request *request);

/* gates.c */
enum gate_event { GATE_BEFORE, GATE_AFTER, GATE_DONE };
struct gate_news {
    struct gate_news *next;
    enum gate_event event;
    uint64_t number; /* of the sighting; 0 if it never stopped */
    uint32_t opcode, pid, uid;
    int error;          /* how it was done: an errno, or 0 */
    const char *second; /* path, in `paths`, or NULL */
    char paths[];       /* below the root */
};
int gates_init(struct mirror *mirror);
int gates_start(struct mirror *mirror);
void gates_stop(struct mirror *mirror);
void gates_destroy(struct mirror *mirror);
/* Sees a request whose opcode is watched. True: it has been stopped, or answered. */
bool gates_meet(struct worker *worker, const struct request *request);
/* The reply of the request that the worker's sighting is of. True: it is withheld. */
bool gates_withhold(struct worker *worker, int error, const void *body, size_t size);
void gates_interrupt(struct mirror *mirror, const struct request *request);
void sighting_drop(struct sighting *sighting); /* nobody will answer its request any more; it may be NULL */
/* Which opcodes stop before and after, and of which is told when they are done; a bit for each. */
void gates_watch(struct mirror *mirror, uint64_t before, uint64_t after, uint64_t told);
int gates_let_go(struct mirror *mirror, uint64_t number, int answer); /* 0, -ENOENT, -EINVAL: not after this */
void gates_open(struct mirror *mirror); /* nothing is watched, and all that stand are let go */
/* What has happened, to be freed one by one; `untold` of what was done was dropped before that. */
struct gate_news *gates_news(struct mirror *mirror, unsigned long *untold);

#endif
