"""Holds everything that the customers of the shop say.

Plain data. Every act has at least six phrasings; what is in braces is filled in from the product, the budget or the
customer.
"""

from __future__ import annotations

from typing import Final, Literal

Family = Literal["price", "quality", "delivery", "returns"]
Mood = Literal["friendly", "neutral", "impatient"]

FAMILIES: Final[tuple[Family, ...]] = ("price", "quality", "delivery", "returns")

VAGUE: Final[dict[Mood, tuple[str, ...]]] = {
    "friendly": (
        "Hi! I'm looking for some new gear. Could you help me?",
        "Hello there! I'd love some advice.",
        "Good morning! I'm thinking about buying something new.",
        "Hi, nice shop! I could use some help choosing.",
        "Hello! A friend told me to ask you for advice.",
        "Hey there! I'd like to treat myself to something.",
    ),
    "neutral": (
        "Hi, I'm looking for something new.",
        "Hello, what do you have?",
        "Hi. I might want to buy something.",
        "Hello, can you recommend something?",
        "Good afternoon. I need some gear.",
        "Hi, I'm just having a look at what you sell.",
    ),
    "impatient": (
        "Hi, I don't have much time. I need some gear.",
        "Hello. Can someone help me, quickly?",
        "I need something and my bus leaves soon.",
        "Hi, I'm on my lunch break. What do you sell?",
        "Quick question: can you help me find something?",
        "I'm in a hurry. I want to buy some gear.",
    ),
}

SMALL_TALK: Final[tuple[str, ...]] = (
    "Hi! Lovely weather today, isn't it?",
    "Hello! What a busy street you have here.",
    "Good morning! Is it always so quiet in here?",
    "Hey, I like the music you're playing.",
    "Hi there. It's really pouring outside, isn't it?",
    "Hello! Have you been open for long?",
    "Hi! I walk past your shop every day.",
)

VAGUE_AGAIN: Final[tuple[str, ...]] = (
    "So, I need some new gear.",
    "Anyway, I'm looking for something new.",
    "I came in to buy something, but I'm not sure what.",
    "Well, I was hoping you could help me choose.",
    "I'd like to find something that suits me.",
    "So, can you help me pick something?",
    "I do want to buy something today.",
)

NEED_TOLD: Final[dict[Mood, tuple[str, ...]]] = {
    "friendly": (
        "Hello! I've got {occasion} soon and need something for {use}.",
        "Hi there! Could you show me something for {use}?",
        "Good morning! I've fallen in love with {use} and need gear.",
        "Hi! A friend got me into {use}. What do you suggest?",
        "Hello! I'd love to find something nice for {use}.",
        "Hey! I'm excited about {use} and need the right gear.",
    ),
    "neutral": (
        "Hi, I need something for {use}.",
        "Hello. What do you have for {use}?",
        "Hi, I'm after something for {use}.",
        "Good afternoon. I'm shopping for {use} gear.",
        "Hello, I'd like to see something for {use}.",
        "Hi. I've got {occasion} soon, so it's about {use}.",
    ),
    "impatient": (
        "I need something for {use}, and I'm in a hurry.",
        "Hi. Something for {use}, please, I don't have long.",
        "Hello. Just show me what you have for {use}.",
        "Quickly, please: what's good for {use}?",
        "I have five minutes to get something for {use}.",
        "Hi, I'm late. What do you have for {use}?",
    ),
}

NEED: Final[dict[Mood, tuple[str, ...]]] = {
    "friendly": (
        "Oh, it's for {use}. I've got {occasion} coming up!",
        "Thanks for asking! I need something for {use}.",
        "I've just taken up {use}, so I need the right gear.",
        "Mostly for {use}. I've got {occasion} soon.",
        "I'd love something for {use}.",
        "Happy to tell you: it's all about {use}.",
    ),
    "neutral": (
        "It's for {use}.",
        "I need something for {use}.",
        "It would be for {use}, about twice a month.",
        "I've got {occasion} soon, so it's for {use}.",
        "I do a lot of {use}, so something for that.",
        "Something that works well for {use}.",
    ),
    "impatient": (
        "Something for {use}, please.",
        "For {use}. What have you got?",
        "It's for {use}, and I need it for {occasion}.",
        "I do {use}. That's all there is to it.",
        "Just something for {use}.",
        "Gear for {use}, nothing fancy.",
    ),
}

NEED_AGAIN: Final[tuple[str, ...]] = (
    "Like I said, it's for {use}.",
    "I want something for {use}.",
    "It has to be right for {use}.",
    "I've got {occasion} soon, so think of {use}.",
    "All I need is something good for {use}.",
    "Remember, I'm going to use it for {use}.",
    "What would you pick for {use}?",
)

BUDGET: Final[tuple[str, ...]] = (
    "I have about ${budget}.",
    "My budget is around ${budget}.",
    "I can spend about ${budget}.",
    "I'd like to stay near ${budget}.",
    "I've set aside ${budget} for it.",
    "Around ${budget} would be fine.",
)

INTEREST: Final[tuple[str, ...]] = (
    "The {name} sounds nice.",
    "Okay, the {noun} looks good.",
    "That could be the one.",
    "I like the sound of that.",
    "Hm, the {name}. Interesting.",
    "That's the kind of {noun} I had in mind.",
)

PRICE_WITHIN: Final[tuple[str, ...]] = (
    "But isn't ${price} a lot for a {noun}?",
    "Why does it cost ${price}?",
    "Is ${price} the best price you can offer?",
    "I've seen cheaper ones. Why pay ${price}?",
    "Can you do anything about the price?",
    "Is it really worth ${price}?",
    "Hm, ${price} is more than I expected. Why so much?",
)

PRICE_OVER: Final[tuple[str, ...]] = (
    "But I only have ${budget}. Can you help with the price?",
    "Isn't ${price} too much if I have ${budget}?",
    "I can't pay ${price} at once. Is there another way?",
    "Could it cost less? I only have ${budget}.",
    "I wanted to spend ${budget}. Can the price come down?",
    "What can I do if ${price} is over my budget?",
)

OBJECTIONS: Final[dict[Family, tuple[str, ...]]] = {
    "price": PRICE_WITHIN,
    "quality": (
        "But will it last?",
        "How do I know it's well made?",
        "Won't it break after a few months?",
        "How good is the quality?",
        "My last {noun} fell apart. Is this one better?",
        "Can I trust it to hold up?",
        "Is it strong enough for every day?",
    ),
    "delivery": (
        "How soon can I have it?",
        "When would it arrive?",
        "Can you get it to me this week?",
        "How long does delivery take?",
        "How fast can you ship it?",
        "Would I have to wait long for it?",
        "Will it be here before the weekend?",
    ),
    "returns": (
        "What if I don't like it?",
        "Can I bring it back if it doesn't suit me?",
        "What if it isn't right for me?",
        "Would I get my money back if I change my mind?",
        "What happens if I'm not happy with it?",
        "Could I return the {noun} later?",
        "What if it turns out to be the wrong {noun}?",
    ),
}

SATISFIED: Final[tuple[str, ...]] = (
    "That helps, thanks.",
    "Good, that answers my question.",
    "Okay, that's good to hear.",
    "Great, I'm convinced.",
    "Perfect, that's what I wanted to know.",
    "All right, that sounds fair to me.",
    "Nice, that settles it.",
    "Good to know. I think I want it.",
)

READY_AGAIN: Final[tuple[str, ...]] = (
    "So what do we do now?",
    "I like it. What's the next step?",
    "I already said I'm happy with it.",
    "Okay, and now?",
    "I'm ready if you are.",
    "Fine, how do we go on from here?",
)

GENERIC: Final[tuple[str, ...]] = (
    "That doesn't really help me.",
    "Okay, but that tells me nothing.",
    "Could we get to the point?",
    "I'd like some real advice, please.",
    "Hm, that doesn't get me further.",
    "I'm not sure why you say that.",
)

TOLD_ALREADY: Final[tuple[str, ...]] = (
    "I've told you that already.",
    "Didn't I just say?",
    "You've asked me that.",
    "I thought I'd said it.",
    "That's what I was telling you.",
    "Do I have to say it again?",
)

BLIND: Final[tuple[str, ...]] = (
    "You don't even know what I need yet.",
    "Maybe, but you haven't asked what I need.",
    "How do you know that suits me?",
    "Are you just guessing?",
    "Why that one? You know nothing about me.",
    "Perhaps, but shouldn't you ask me first?",
)

WRONG_PRODUCT: Final[tuple[str, ...]] = (
    "The {named}? That's no use to me.",
    "I don't think the {named} is what I need.",
    "What would I do with the {named}?",
    "No, not the {named}.",
    "The {named} isn't for me.",
    "I wasn't thinking of the {named}.",
)

SEVERAL_PRODUCTS: Final[tuple[str, ...]] = (
    "That's a lot at once. Just tell me which one.",
    "I can't use all of those. Pick one for me.",
    "So many! I only need one thing.",
    "Please don't read me the whole list.",
    "Which one, though? I need just one.",
    "I asked for advice, not for a catalog.",
)

IGNORED: Final[tuple[str, ...]] = (
    "That's not what I asked.",
    "You didn't answer my question.",
    "Hm, but my question was different.",
    "Please answer me first.",
    "That doesn't answer it.",
    "I asked you something else.",
)

SPEECH: Final[tuple[str, ...]] = (
    "That's a speech, not an answer.",
    "That's too much at once.",
    "Slow down, I asked one thing.",
    "I didn't ask about all of that.",
    "You sound like a brochure.",
    "Just one answer, please.",
)

NO_FACT: Final[tuple[str, ...]] = (
    "I don't quite see what that means.",
    "Could you be more precise?",
    "That's not clear to me.",
    "Hm, that could mean anything.",
    "How do you mean that, exactly?",
    "I'd need something I can rely on.",
)

EARLY: Final[tuple[str, ...]] = (
    "Not so fast.",
    "I'm not there yet.",
    "That's a bit pushy.",
    "I haven't decided anything yet.",
    "No, it's too soon for that.",
    "Why would I do that already?",
    "Let's not rush.",
)

NOT_FOLLOWED: Final[tuple[str, ...]] = (
    "Sorry, I don't follow.",
    "Sorry, what do you mean?",
    "I didn't get that.",
    "Could you say that more simply?",
    "Sorry, you lost me there.",
    "Excuse me? I don't understand.",
)

LEAVING: Final[tuple[str, ...]] = (
    "You know what, I'll look elsewhere. Goodbye.",
    "This isn't going anywhere. Have a nice day.",
    "I think I'll try another shop, thanks.",
    "Never mind, I'll find it online. Bye.",
    "Thanks, but I've had enough. Goodbye.",
    "I'd rather leave it. Bye.",
    "No, thank you. I'm off.",
)

OUT_OF_TIME: Final[tuple[str, ...]] = (
    "Sorry, I have to go now. Bye.",
    "I've run out of time, sorry. Goodbye.",
    "I'll think about it. I really must go.",
    "My ride is here. Maybe another time.",
    "I have to run. Thanks anyway.",
    "This took longer than I thought. Goodbye.",
)

# What customers give when asked for an email, for a phone number, or to buy.
CONTACT: Final[dict[Literal["email", "phone", "order"], tuple[str, ...]]] = {
    "email": (
        "Sure, it's {email}.",
        "You can write to {email}.",
        "Gladly. My email is {email}.",
        "All right, take {email}.",
        "Here you go: {email}.",
        "It's {email}, under {who}.",
    ),
    "phone": (
        "Sure, it's {phone}.",
        "You can call me on {phone}.",
        "Gladly. I'm {who}, and my number is {phone}.",
        "All right, my number is {phone}.",
        "Here you go: {phone}.",
        "It's {phone}. Ask for {who}.",
    ),
    "order": (
        "Sure, put it under {who}, {phone}.",
        "Yes, please. My email is {email}.",
        "I'll take it. You can write to {email}.",
        "Yes, let's do it. I'm {who}, {phone}.",
        "All right, I'll buy it. My number is {phone}.",
        "Okay, it's for {who}, {email}.",
    ),
}

FIRST_NAMES: Final[tuple[str, ...]] = (
    *("Maria", "Tom", "Aisha", "Ben", "Chloe", "David", "Elena", "Frank", "Grace", "Hiro"),
    *("Ines", "Jack", "Karin", "Leo", "Mei", "Nora", "Omar", "Paula", "Rosa", "Sam"),
)
LAST_NAMES: Final[tuple[str, ...]] = (
    *("Baker", "Costa", "Dixon", "Evans", "Fischer", "Garcia", "Hill", "Ito", "Jones", "King"),
    *("Lopez", "Meyer", "Novak", "Owens", "Perry", "Rossi", "Stone", "Turner", "Wood", "Young"),
)
