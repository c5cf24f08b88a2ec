/* The C functions, called from C: numbers by hand, and every refusal. Arrays are as long as the header says. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxcam/onnxcam.h"

static int failures = 0;

static void expect(int holds, const char* claim) {
    if (!holds) {
        printf("not so: %s\n", claim);
        ++failures;
    }
}
#define EXPECT(claim) expect((claim), #claim)

static void numbers_by_hand(void) {
    /* Two channels of 2 x 2; raw = 2 a0 - a1. */
    const float a[8] = {1, 2, 3, 4, 0, 1, 0, 9};
    const float alpha[2] = {2, -1};
    const float per_cell[8] = {1, 0, 0, 0, 0, 1, 0, 0};
    float raw[4], map[4], other[4];
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, alpha, 1, 1, 1, raw, 1) == ONNXCAM_OK);
    EXPECT(raw[0] == 2 && raw[1] == 3 && raw[2] == 6 && raw[3] == -1);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, per_cell, 1, 2, 2, raw, 1) == ONNXCAM_OK);
    EXPECT(raw[0] == 1 && raw[1] == 1 && raw[2] == 0 && raw[3] == 0);

    /* At its own size a map is max(raw, 0) / 6: 2, 3, 6, 0 sixths. */
    EXPECT(onnxcam_heat_maps(a, 1, 2, 2, 2, alpha, 1, 1, 1, map, 2, 2, 1) == ONNXCAM_OK);
    EXPECT(fabsf(map[0] - 2 / 6.F) < 1e-6F && fabsf(map[1] - 0.5F) < 1e-6F);
    EXPECT(fabsf(map[2] - 1) < 1e-6F && map[3] == 0);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, alpha, 1, 1, 1, raw, 1) == ONNXCAM_OK);
    EXPECT(onnxcam_heat_maps_of_raw(raw, 1, 2, 2, other, 2, 2, 1) == ONNXCAM_OK);
    EXPECT(memcmp(map, other, sizeof map) == 0);

    /* A row 0, 1 at four pixels: half-pixel coordinates -1/4, 1/4, 3/4, 5/4, clamped. */
    const float row[2] = {0, 1};
    EXPECT(onnxcam_heat_maps_of_raw(row, 1, 1, 2, map, 1, 4, 1) == ONNXCAM_OK);
    EXPECT(map[0] == 0 && fabsf(map[1] - 0.25F) < 1e-6F && fabsf(map[2] - 0.75F) < 1e-6F);
    EXPECT(fabsf(map[3] - 1) < 1e-6F);
}

static void colours(void) {
    uint8_t jet[768], gray[768], rgba[12], rgb[9];
    const float values[3] = {0, 1, NAN};
    const uint8_t picture[9] = {10, 20, 30, 40, 50, 60, 70, 80, 90};
    EXPECT(onnxcam_colormap("gray", gray) == ONNXCAM_OK);
    EXPECT(gray[0] == 0 && gray[3 * 7 + 1] == 7 && gray[767] == 255);
    EXPECT(onnxcam_colormap("jet", jet) == ONNXCAM_OK);
    EXPECT(jet[0] == 0 && jet[1] == 0 && jet[2] == 128); /* dark blue to dark red */
    EXPECT(jet[765] == 128 && jet[766] == 0 && jet[767] == 0);

    EXPECT(onnxcam_colored(values, 3, jet, 0.5F, rgba) == ONNXCAM_OK);
    EXPECT(rgba[0] == 0 && rgba[1] == 0 && rgba[2] == 128 && rgba[3] == 128);
    EXPECT(rgba[4] == 128 && rgba[5] == 0 && rgba[6] == 0 && rgba[7] == 128);
    EXPECT(rgba[11] == 0);
    EXPECT(onnxcam_overlay(picture, values, 3, jet, 0.5F, rgb) == ONNXCAM_OK);
    EXPECT(rgb[0] == 5 && rgb[1] == 10 && rgb[2] == 79); /* halves upwards */
    EXPECT(rgb[3] == 84 && rgb[4] == 25 && rgb[5] == 30);
    EXPECT(rgb[6] == 70 && rgb[7] == 80 && rgb[8] == 90); /* a NaN leaves the picture */
}

static void refusals(void) {
    const float a[8] = {0};
    const size_t large = (size_t)-1;
    float map[4] = {7, 7, 7, 7};
    uint8_t colors[768];
    EXPECT(onnxcam_raw_maps(NULL, 1, 2, 2, 2, a, 1, 1, 1, map, 1) == ONNXCAM_NULL_POINTER);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, NULL, 1, 1, 1, map, 1) == ONNXCAM_NULL_POINTER);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, a, 1, 1, 1, NULL, 1) == ONNXCAM_NULL_POINTER);
    EXPECT(onnxcam_raw_maps(NULL, 0, 2, 2, 2, NULL, 1, 1, 1, NULL, 1) == ONNXCAM_OK); /* no samples */
    EXPECT(onnxcam_raw_maps(a, 1, 0, 2, 2, a, 1, 1, 1, map, 1) == ONNXCAM_BAD_SIZE);
    EXPECT(onnxcam_raw_maps(a, 1, 2, large, 2, a, 1, 1, 1, map, 1) == ONNXCAM_BAD_SIZE);
    EXPECT(onnxcam_raw_maps(a, large, 2, 2, 2, a, 1, 1, 1, map, 1) == ONNXCAM_BAD_SIZE);
    EXPECT(onnxcam_heat_maps_of_raw(a, 4, 2, 2, map, 0x7fffffff, 0x7fffffff, 1) == ONNXCAM_BAD_SIZE);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, a, 2, 1, 1, map, 1) == ONNXCAM_BAD_ALPHA);
    EXPECT(onnxcam_raw_maps(a, 1, 2, 2, 2, a, 1, 2, 1, map, 1) == ONNXCAM_BAD_ALPHA);
    EXPECT(onnxcam_heat_maps(a, 1, 2, 2, 2, a, 1, 1, 1, map, 2, 2, -1) == ONNXCAM_BAD_NUMBER);
    EXPECT(onnxcam_colored(a, 1, colors, 1.5F, (uint8_t*)map) == ONNXCAM_BAD_NUMBER);
    EXPECT(onnxcam_colored(a, 1, colors, NAN, (uint8_t*)map) == ONNXCAM_BAD_NUMBER);
    EXPECT(onnxcam_colored(a, 1, NULL, 0.5F, (uint8_t*)map) == ONNXCAM_NULL_POINTER);
    EXPECT(onnxcam_colormap("rainbow", colors) == ONNXCAM_UNKNOWN_COLORMAP);
    EXPECT(onnxcam_colormap(NULL, colors) == ONNXCAM_NULL_POINTER);
    EXPECT(map[0] == 7 && map[3] == 7); /* nothing was written */
    for (int status = -1; status < 9; ++status) EXPECT(strlen(onnxcam_describe(status)) > 3);
    EXPECT(strcmp(onnxcam_describe(ONNXCAM_OK), "done") == 0);
    EXPECT(onnxcam_version()[0] >= '0' && onnxcam_version()[0] <= '9');
}

int main(void) {
    numbers_by_hand();
    colours();
    refusals();
    printf("%d failures\n", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
