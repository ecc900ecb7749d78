/*
 * A libFuzzer harness of the request parser: `make fuzz`.
 *
 * What request_parse() lets through is walked as the operations will walk it, so that a name without an end, or data
 * that lies outside, is a finding here.
 */
#include "../../exclfs/mirror/mirror.h"

static size_t touched;

static void walk(const void *from, size_t size) {
    for (size_t i = 0; i < size; i++) touched += ((const volatile unsigned char *)from)[i];
}

static void walk_forgets(const struct request *request) {
    const struct fuse_batch_forget_in *batch = request->argument;
    const struct fuse_forget_one *one = request->data;
    for (uint32_t i = 0; i < batch->count; i++) walk(&one[i], sizeof one[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    void *message = malloc(size > 0 ? size : 1); /* aligned, as a worker's buffer is, and exactly this long */
    if (message == NULL) return 0;
    memcpy(message, data, size);
    if (size >= sizeof(struct fuse_in_header)) ((struct fuse_in_header *)message)->len = (uint32_t)size;
    struct request request;
    if (request_parse(message, size, &request) == 0) {
        if (request.name != NULL) walk(request.name, strlen(request.name) + 1);
        if (request.second_name != NULL) walk(request.second_name, strlen(request.second_name) + 1);
        if (request.header->opcode == FUSE_BATCH_FORGET) walk_forgets(&request);
        else walk(request.data, request.data_size);
    }
    free(message);
    return 0;
}
