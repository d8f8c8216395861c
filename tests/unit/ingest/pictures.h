/* Small encoded pictures of every kind, made with the libraries' own encoders: what the fixtures of Pillow's making do not have (sampling
 * factors, scans, restart markers, arithmetic coding, EXIF on any of them). Bytes are malloc's: free(). */
#ifndef TESTS_UNIT_INGEST_PICTURES_H
#define TESTS_UNIT_INGEST_PICTURES_H

#include "base/alloc.h"
#include "base/bytes.h"

typedef struct test_jpeg {
    int width, height;
    int components;   /* 1, 3 or 4 */
    int h[4], v[4];   /* sampling factors */
    bool progressive; /* the usual script */
    bool unfinished;  /* progressive, without the last bits of its coefficients: libjpeg smooths it */
    bool one_by_one;  /* a scan for each component */
    bool arithmetic;
    int restart; /* MCUs; 0: none */
    int quality;
    int orientation; /* of an EXIF block; 0: none */
    bool adobe_ycck; /* 4 components: YCCK */
} test_jpeg;

/* A picture with smooth parts, edges and noise. rgb[height * width * n] */
void test_fill_picture(uint8_t *pixels, int width, int height, int n, uint32_t seed);

/* {NULL, 0} where the library cannot (arithmetic coding may be left out of a build). */
agglo_bytes test_jpeg_make(const test_jpeg *what);

agglo_bytes test_webp_make(int width, int height, bool lossless, bool alpha, int filter_type, float quality);

#endif
