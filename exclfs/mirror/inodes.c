/*
 * Inodes: the table of every inode that the kernel knows or that is held.
 *
 * An entry is found by its key (device and inode number on the backing tree) and by its nodeid (what the kernel calls
 * it). It goes when its last reference does; that transition happens only with both shards locked, so that whoever
 * finds an entry finds it alive. An entry whose inode has been removed, or whose number was seen on a younger inode,
 * leaves the key index at once and stays under its nodeid until the kernel forgets it.
 *
 * The nodeid is the backing inode number where that is on the root's device and free, so that it is the same after
 * a restart. The generation tells inodes apart that had one number one after the other.
 *
 * A directory that is reached by two mounts (one of them a bind mount inside the tree) is two nodeids: to the kernel a
 * FUSE directory has one parent, and a working directory would jump from one to the other. The second is a *view*: an
 * entry of its own with its own place and lookups, whose word and open files are those of the first, its *primary*; the
 * policy knows only that one. Other inodes stay one nodeid, with one page cache and one set of locks, unless the mounts
 * allow different things (one is read-only, say): FUSE asks by nodeid alone, so what a mount forbids can only be known
 * if the nodeid tells the mount. A primary stays while it has views, whoever is forgotten first.
 */
#include "mirror.h"

#include <malloc.h>

static uint64_t hash_key(struct key key) { return mix(key.ino + mix(key.dev)); }
static struct shard *key_shard(struct mirror *mirror, struct key key) {
    return &mirror->table.by_key[hash_key(key) % SHARDS];
}
static struct shard *nodeid_shard(struct mirror *mirror, uint64_t nodeid) {
    return &mirror->table.by_nodeid[mix(nodeid) % SHARDS];
}

static struct inode **bucket(struct shard *shard, uint64_t hash) {
    return &shard->buckets[(hash / SHARDS) & (shard->size - 1)];
}

enum { LEAST_BUCKETS = 64 };

static int shard_init(struct shard *shard) {
    shard->size = LEAST_BUCKETS;
    shard->count = 0;
    shard->buckets = calloc(shard->size, sizeof *shard->buckets);
    if (shard->buckets == NULL) return -ENOMEM;
    return -pthread_mutex_init(&shard->lock, NULL);
}

int inodes_init(struct mirror *mirror) {
    atomic_store(&mirror->table.next_nodeid, 1UL << 63);
    for (unsigned i = 0; i < SHARDS; i++) {
        int error = shard_init(&mirror->table.by_key[i]);
        if (!error) error = shard_init(&mirror->table.by_nodeid[i]);
        if (error) return error;
    }
    return 0;
}

/* Memory that many inodes had goes back to the system, which malloc by itself does only for what lies at its end. */
static void give_back(struct mirror *mirror, unsigned long known) {
    enum { WORTH_IT = 1 << 16 };
    unsigned long most = atomic_load_explicit(&mirror->table.most_known, memory_order_relaxed);
    if (most < WORTH_IT || known > most / 4) return;
    if (atomic_compare_exchange_strong(&mirror->table.most_known, &most, known)) malloc_trim(0);
}

static void inode_free(struct mirror *mirror, struct inode *inode) {
    backing_drop(mirror, inode);
    if (inode->name != inode->packed) free(inode->name);
    free(inode);
    atomic_fetch_sub(&mirror->table.known, 1);
}

void inodes_destroy(struct mirror *mirror) {
    /* Every worker has ended: what is left is freed without regard to references. */
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *shard = &mirror->table.by_nodeid[i];
        for (size_t b = 0; shard->buckets != NULL && b < shard->size; b++)
            while (shard->buckets[b] != NULL) {
                struct inode *inode = shard->buckets[b];
                shard->buckets[b] = inode->next_of_nodeid;
                inode_free(mirror, inode);
            }
        free(shard->buckets);
        free(mirror->table.by_key[i].buckets);
        pthread_mutex_destroy(&shard->lock);
        pthread_mutex_destroy(&mirror->table.by_key[i].lock);
    }
}

/* ---- two intrusive hash indexes ------------------------------------------------------------------------- */

enum index { KEY, NODEID };

static struct inode **link_of(struct inode *inode, enum index index) {
    return index == KEY ? &inode->next_of_key : &inode->next_of_nodeid;
}
static uint64_t hash_of(const struct inode *inode, enum index index) {
    return index == KEY ? hash_key(inode->key) : mix(inode->nodeid);
}

static void resize(struct shard *shard, size_t size, enum index index) {
    struct inode **buckets = calloc(size, sizeof *buckets);
    if (buckets == NULL) return; /* longer chains are slower, not wrong */
    for (size_t b = 0; b < shard->size; b++)
        while (shard->buckets[b] != NULL) {
            struct inode *inode = shard->buckets[b];
            shard->buckets[b] = *link_of(inode, index);
            struct inode **to = &buckets[(hash_of(inode, index) / SHARDS) & (size - 1)];
            *link_of(inode, index) = *to;
            *to = inode;
        }
    free(shard->buckets);
    shard->buckets = buckets;
    shard->size = size;
}

static void insert(struct shard *shard, struct inode *inode, enum index index) {
    if (shard->count >= shard->size / 2) resize(shard, shard->size * 2, index);
    struct inode **at = bucket(shard, hash_of(inode, index));
    *link_of(inode, index) = *at;
    *at = inode;
    shard->count++;
}

static bool take_out(struct shard *shard, struct inode *inode, enum index index) {
    for (struct inode **at = bucket(shard, hash_of(inode, index)); *at != NULL; at = link_of(*at, index))
        if (*at == inode) {
            *at = *link_of(inode, index);
            shard->count--;
            if (shard->size > LEAST_BUCKETS && shard->count < shard->size / 16) resize(shard, shard->size / 2, index);
            return true;
        }
    return false;
}

/* The primary. */
static struct inode *search_key(struct shard *shard, struct key key) {
    struct inode *inode = *bucket(shard, hash_key(key));
    while (inode != NULL && (inode->primary != NULL || !same_key(inode->key, key))) inode = inode->next_of_key;
    return inode;
}

/* By which mount an inode was just seen, and what that forbids. */
struct by_mount {
    uint64_t mount;
    uint8_t limits;
};

static bool is_seen_by(const struct inode *inode, struct by_mount by) {
    if (atomic_load_explicit(&inode->mount, memory_order_relaxed) == by.mount) return true;
    return inode_type(inode) != S_IFDIR && atomic_load_explicit(&inode->limits, memory_order_relaxed) == by.limits;
}

/* The primary or one of its views, whichever is seen by this mount. */
static struct inode *search_view(struct shard *shard, struct inode *primary, struct by_mount by) {
    if (is_seen_by(primary, by)) return primary;
    struct inode *inode = *bucket(shard, hash_key(primary->key));
    while (inode != NULL && (inode->primary != primary || !is_seen_by(inode, by))) inode = inode->next_of_key;
    return inode;
}

/* Takes the inode and its views out of the key index: the number has become another's, or nobody's. */
static void take_out_all(struct shard *shard, struct inode *primary) {
    take_out(shard, primary, KEY);
    for (struct inode **at = bucket(shard, hash_key(primary->key)); *at != NULL;) {
        if ((*at)->primary == primary) {
            *at = (*at)->next_of_key;
            shard->count--;
        } else
            at = &(*at)->next_of_key;
    }
}

static struct inode *search_nodeid(struct shard *shard, uint64_t nodeid) {
    struct inode *inode = *bucket(shard, mix(nodeid));
    while (inode != NULL && inode->nodeid != nodeid) inode = inode->next_of_nodeid;
    return inode;
}

/* ---- references ----------------------------------------------------------------------------------------- */

void inode_get(struct inode *inode) { atomic_fetch_add_explicit(&inode->references, 1, memory_order_relaxed); }

/* Lets go of one reference. True if it was the last: then the inode is in no index any more. */
static bool was_last(struct mirror *mirror, struct inode *inode) {
    unsigned references = atomic_load(&inode->references);
    while (references > 1)
        if (atomic_compare_exchange_weak(&inode->references, &references, references - 1)) return false;

    struct shard *by_key = key_shard(mirror, inode->key), *by_nodeid = nodeid_shard(mirror, inode->nodeid);
    pthread_mutex_lock(&by_key->lock);
    pthread_mutex_lock(&by_nodeid->lock);
    bool last = atomic_fetch_sub(&inode->references, 1) == 1;
    if (last) {
        take_out(by_key, inode, KEY);
        take_out(by_nodeid, inode, NODEID);
    }
    pthread_mutex_unlock(&by_nodeid->lock);
    pthread_mutex_unlock(&by_key->lock);
    return last;
}

void inode_put(struct mirror *mirror, struct inode *inode) {
    /* The end of one may be the end of all that lead to it: a loop, for a tree can be deeper than a stack. */
    while (inode != NULL && was_last(mirror, inode)) {
        struct inode *parent = inode->parent, *primary = inode->primary;
        inode_free(mirror, inode);
        if (primary != NULL) inode_put(mirror, primary); /* as deep as mounts are nested */
        inode = parent;
    }
}

bool same_birth(const struct inode *inode, const struct statx *attributes) {
    if (inode_type(inode) != (attributes->stx_mode & S_IFMT)) return false;
    bool unknown = inode->birth_seconds == 0 && inode->birth_nanoseconds == 0;
    if (unknown || !(attributes->stx_mask & STATX_BTIME)) return true;
    return inode->birth_seconds == attributes->stx_btime.tv_sec &&
           inode->birth_nanoseconds == attributes->stx_btime.tv_nsec;
}

struct inode *inode_by_key(struct mirror *mirror, struct key key, const struct statx *attributes) {
    struct shard *shard = key_shard(mirror, key);
    pthread_mutex_lock(&shard->lock);
    struct inode *inode = search_key(shard, key);
    if (inode != NULL && attributes != NULL && !same_birth(inode, attributes)) inode = NULL;
    if (inode != NULL) inode_get(inode);
    pthread_mutex_unlock(&shard->lock);
    return inode;
}

struct inode *inode_by_nodeid(struct mirror *mirror, uint64_t nodeid) {
    if (nodeid == FUSE_ROOT_ID) {
        inode_get(mirror->root);
        return mirror->root;
    }
    struct shard *shard = nodeid_shard(mirror, nodeid);
    pthread_mutex_lock(&shard->lock);
    struct inode *inode = search_nodeid(shard, nodeid);
    if (inode != NULL) inode_get(inode);
    pthread_mutex_unlock(&shard->lock);
    return inode;
}

/* ---- making and meeting an inode ------------------------------------------------------------------------ */

static uint32_t generation_of(const struct handle *handle, const struct statx *attributes) {
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */
    if (handle->bytes > 0)
        for (unsigned i = 0; i < handle->bytes; i++) hash = (hash ^ handle->data[i]) * 0x100000001b3ULL;
    else if (attributes->stx_mask & STATX_BTIME)
        hash = mix((uint64_t)attributes->stx_btime.tv_sec * 1000000000ULL + attributes->stx_btime.tv_nsec);
    return (uint32_t)(hash ^ hash >> 32);
}

/* Inserts into both indexes. The key shard is locked. */
static void publish(struct mirror *mirror, struct shard *by_key, struct inode *inode) {
    bool natural = mirror->root == NULL || (inode->key.dev == mirror->root->key.dev && inode->key.ino > FUSE_ROOT_ID);
    if (mirror->root == NULL) inode->nodeid = FUSE_ROOT_ID;
    else inode->nodeid = natural ? inode->key.ino : atomic_fetch_add(&mirror->table.next_nodeid, 1);
    for (;;) {
        struct shard *by_nodeid = nodeid_shard(mirror, inode->nodeid);
        pthread_mutex_lock(&by_nodeid->lock);
        if (search_nodeid(by_nodeid, inode->nodeid) == NULL) {
            insert(by_nodeid, inode, NODEID);
            pthread_mutex_unlock(&by_nodeid->lock);
            break;
        }
        pthread_mutex_unlock(&by_nodeid->lock);
        inode->nodeid = atomic_fetch_add(&mirror->table.next_nodeid, 1);
    }
    insert(by_key, inode, KEY);
}

/* A handle is worth taking only where it can be opened again: on the root's mount, by a privileged server. */
static void take_handle(struct mirror *mirror, int parent_fd, const char *name, uint64_t mount, struct handle *handle) {
    handle->bytes = 0;
    if (parent_fd < 0 || mount != mirror->home.mount || !atomic_load(&mirror->handles)) return;
    if (!backing_handle(parent_fd, name, handle)) handle->bytes = 0;
}

/* Name and handle lie behind the inode: two allocations less for each. */
static struct inode *inode_new(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                               const struct statx *attributes, struct by_mount by) {
    struct handle handle;
    take_handle(mirror, parent_fd, name, by.mount, &handle);
    size_t room = strlen(name) + 1;
    struct inode *inode = calloc(1, sizeof *inode + room + handle.bytes);
    if (inode == NULL) return NULL;
    inode->name = memcpy(inode->packed, name, room);
    inode->name_room = (uint8_t)(room - 1);
    inode->handle_type = handle.type;
    inode->handle_bytes = (uint8_t)handle.bytes;
    memcpy(inode->packed + room, handle.data, handle.bytes);
    inode->key = key_of(attributes);
    inode->type = (uint8_t)((attributes->stx_mode & S_IFMT) >> 12);
    if (mirror->births && attributes->stx_mask & STATX_BTIME) {
        inode->birth_seconds = attributes->stx_btime.tv_sec;
        inode->birth_nanoseconds = attributes->stx_btime.tv_nsec;
    }
    inode->fd = -1;
    inode->generation = generation_of(&handle, attributes);
    atomic_init(&inode->mount, by.mount);
    atomic_init(&inode->limits, by.limits);
    inode->parent = parent;
    if (parent != NULL) inode_get(parent);
    unsigned long known = atomic_fetch_add(&mirror->table.known, 1) + 1;
    if (known > atomic_load_explicit(&mirror->table.most_known, memory_order_relaxed))
        atomic_store_explicit(&mirror->table.most_known, known, memory_order_relaxed);
    return inode;
}

void inode_handle(const struct inode *inode, struct handle *handle) {
    handle->type = inode->handle_type;
    handle->bytes = inode->handle_bytes;
    memcpy(handle->data, inode->packed + inode->name_room + 1, inode->handle_bytes);
}

static void remember(struct inode *inode, unsigned lookups) { /* the key shard is locked */
    if (lookups > 0 && inode->nlookup == 0) inode_get(inode);
    inode->nlookup += lookups;
}

void inode_looked_up(struct mirror *mirror, struct inode *inode) {
    struct shard *shard = key_shard(mirror, inode->key);
    pthread_mutex_lock(&shard->lock);
    remember(inode, 1);
    pthread_mutex_unlock(&shard->lock);
}

/* Makes it a view of what the kernel knows already. The key shard is locked. */
static void make_view(struct mirror *mirror, struct inode *inode, struct inode *primary) {
    inode_get(primary);
    inode->primary = primary;
    atomic_store(&primary->viewed, true);
    atomic_fetch_add(&mirror->table.views, 1);
    if (inode_type(inode) == S_IFDIR && atomic_load(&mirror->tree.below) > 0)
        tree_changed(mirror); /* there is one more way to what lies below */
}

/* By which mount it is reached now; a mount may forbid other things than it did (mount -o remount). */
static void note_mount(struct inode *inode, struct by_mount by) {
    if (atomic_load_explicit(&inode->mount, memory_order_relaxed) != by.mount) {
        atomic_store_explicit(&inode->mount, by.mount, memory_order_relaxed);
        atomic_store_explicit(&inode->has_moved, true, memory_order_relaxed);
    }
    if (inode_type(inode) == S_IFDIR) atomic_store_explicit(&inode->limits, by.limits, memory_order_relaxed);
}

/* The inode as it is known by this mount, or `made` in its place if that is not NULL. The key shard is locked. */
static struct inode *meet(struct mirror *mirror, struct shard *shard, const struct statx *attributes,
                          struct by_mount by, struct inode *made) {
    struct inode *primary = search_key(shard, key_of(attributes));
    if (primary != NULL && !same_birth(primary, attributes)) {
        take_out_all(shard, primary); /* the number has been given to a younger inode behind the mount */
        primary = NULL;
    }
    struct inode *inode = primary == NULL ? NULL : search_view(shard, primary, by);
    if (inode != NULL || made == NULL) return inode;
    if (primary != NULL) make_view(mirror, made, primary);
    publish(mirror, shard, made);
    return made;
}

struct inode *inode_seen(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                         const struct statx *attributes, unsigned lookups) {
    struct by_mount by = {mount_of(attributes), nested_limits(mirror, parent, parent_fd, name, attributes)};
    struct shard *shard = key_shard(mirror, key_of(attributes));
    struct inode *made = NULL;
    for (;;) {
        pthread_mutex_lock(&shard->lock);
        struct inode *inode = meet(mirror, shard, attributes, by, made);
        if (inode != NULL) {
            inode_get(inode);
            remember(inode, lookups);
            if (inode != made) note_mount(inode, by);
        }
        pthread_mutex_unlock(&shard->lock);
        if (inode == NULL) {
            made = inode_new(mirror, parent, name, parent_fd, attributes, by);
            if (made == NULL) return NULL;
            continue;
        }
        bool known = inode != made;
        if (known && made != NULL) { /* somebody else was faster */
            inode_free(mirror, made);
            if (parent != NULL) inode_put(mirror, parent);
        }
        if (known && parent != NULL) inode_moved(mirror, inode, parent, name);
        return inode;
    }
}

/* Each inode keeps its parent known. Of two directories that changed places behind the mount each may have been seen in
 * the other: nothing would ever let go of such a circle. A directory that the kernel has forgotten is looked up before
 * anybody uses it, so that its place may be forgotten too. */
static void leave_circle(struct mirror *mirror, struct inode *directory) {
    if (tree_is_circle(mirror, directory)) inode_lost(mirror, directory);
}

void inode_forget(struct mirror *mirror, uint64_t nodeid, uint64_t lookups) {
    if (nodeid == FUSE_ROOT_ID) return;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return;
    struct shard *shard = key_shard(mirror, inode->key);
    pthread_mutex_lock(&shard->lock);
    bool forgotten = inode->nlookup > 0 && inode->nlookup <= lookups;
    inode->nlookup = inode->nlookup > lookups ? inode->nlookup - lookups : 0;
    pthread_mutex_unlock(&shard->lock);
    /* Besides the kernel's reference and this one: children, as a rule. */
    if (forgotten && inode_type(inode) == S_IFDIR && atomic_load(&inode->references) > 2) leave_circle(mirror, inode);
    if (forgotten) inode_put(mirror, inode);
    inode_put(mirror, inode);
    if (forgotten) give_back(mirror, atomic_load_explicit(&mirror->table.known, memory_order_relaxed));
}

void inode_gone(struct mirror *mirror, struct inode *inode) {
    struct inode *primary = primary_of(inode);
    struct shard *shard = key_shard(mirror, primary->key);
    pthread_mutex_lock(&shard->lock);
    atomic_store(&primary->removed, true);
    take_out_all(shard, primary);
    pthread_mutex_unlock(&shard->lock);
}

unsigned inode_views(struct mirror *mirror, struct inode *inode, struct inode *views[MOST_VIEWS]) {
    struct inode *primary = primary_of(inode);
    unsigned number = 0;
    inode_get(views[number++] = primary);
    if (!atomic_load(&primary->viewed)) return number;
    struct shard *shard = key_shard(mirror, primary->key);
    pthread_mutex_lock(&shard->lock);
    for (struct inode *at = *bucket(shard, hash_key(primary->key)); at != NULL && number < MOST_VIEWS;
         at = at->next_of_key)
        if (at->primary == primary) inode_get(views[number++] = at);
    pthread_mutex_unlock(&shard->lock);
    return number;
}
